"""A running Metaflow task that does what it is told (``flows/save_flow.py``), so that two packages can take turns."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from .environment import FLOWS, Package, flow_environment
from .servers import Target

_START_S, _END_S = 120.0, 900.0


class RemoteTask:
    """Call ``do`` with the name of a command and its arguments."""

    def __init__(self, channel: socket.socket, log: str) -> None:
        self._lines, self._log = channel.makefile("rw"), log

    def do(self, op: str, **arguments: Any) -> dict[str, Any]:
        self._lines.write(json.dumps({"op": op, **arguments}) + "\n")
        self._lines.flush()
        line = self._lines.readline()
        if not line:
            raise SystemExit(f"The task ended during {op!r}:\n{tail(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._lines.close()


@contextlib.contextmanager
def remote_task(package: Package, target: Target, work: str) -> Iterator[RemoteTask]:
    """Start a flow, yield its task, and let the flow end."""
    environment = flow_environment(package, work, target.environment)
    flow = running_flow(package, "save_flow.py", environment, work, _END_S)
    with flow as (listening, log), accepted(listening, log) as channel:
        task = RemoteTask(channel, log)
        yield task
        task.close()


@contextlib.contextmanager
def running_flow(
    package: Package, name: str, environment: Mapping[str, str], work: str, end_s: float
) -> Iterator[tuple[socket.socket, str]]:
    """Start a flow of ``flows/``; after the block it must end by itself.

    Yields
    ------
    (listening socket, path of the flow's log)
        Its tasks connect to the socket, ``$BENCH_SOCKET``.
    """
    log = os.path.join(work, package.name, "flow.log")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, socket.socket(socket.AF_UNIX) as listening:
        settings = {**environment, "BENCH_SOCKET": os.path.join(directory, "socket")}
        listening.bind(settings["BENCH_SOCKET"])
        listening.listen()
        listening.settimeout(_START_S)
        with open(log, "wb") as output:
            command = [package.python, os.path.join(FLOWS, name), "--no-pylint", "run"]
            flow = subprocess.Popen(command, env=settings, cwd=directory, stdout=output, stderr=output)
        try:
            yield listening, log
            if flow.wait(end_s):
                print(f"The flow of {package.name} failed:\n{tail(log)}", file=sys.stderr)
        finally:
            if flow.poll() is None:
                flow.terminate()
                flow.wait()


def accepted(listening: socket.socket, log: str) -> socket.socket:
    """The connection of the flow's next task.

    Raises
    ------
    SystemExit
        None comes.
    """
    try:
        channel, _ = listening.accept()
    except TimeoutError:
        raise SystemExit(f"The task did not start:\n{tail(log)}") from None
    return channel


def tail(path: str, lines: int = 25) -> str:
    with open(path, errors="replace") as file:
        return "".join(file.readlines()[-lines:])

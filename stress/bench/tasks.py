"""Metaflow tasks of both packages that do what they are told (``flows/task_flow.py``), attempt after attempt.

Unlike ``remote_task``, a task here can fail and be retried (each attempt has a temporary directory of its own, as if
it ran on another machine), takes the decorator's options and more environment, and tells when what happened to it.
"""

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

from .environment import Package, flow_environment, versions
from .remote_task import RemoteTask, accepted, running_flow
from .servers import Target

_END_S = 1800.0

Answer = dict[str, Any]


class Task:
    """A running task. ``started``: what its attempt said first (``attempt``, ``pathspec``, ``pre_step`` seconds)."""

    def __init__(self, listening: socket.socket, log: str, out: str) -> None:
        self._listening, self._log, self._out = listening, log, out
        self._accept()

    def _accept(self) -> None:
        self._channel = accepted(self._listening, self._log)
        self._remote = RemoteTask(self._channel, self._log)
        self.started = self.do("start")

    def do(self, op: str, **arguments: Any) -> Answer:
        """Run a command in the task."""
        answer = self._remote.do(op, **arguments)
        if "error" in answer:
            raise SystemExit(f"{op!r} failed in the task:\n{answer['error']}")
        return answer

    def fail(self) -> None:
        """Let this attempt fail, and wait for the next one."""
        self.do("fail")
        self.close()
        self._accept()

    def close(self) -> None:
        """Let the step end."""
        self._remote.close()
        self._channel.close()

    def ended(self) -> dict[str, float]:
        """Seconds the end took, once the flow is over: ``post_step`` (the hook), ``after_code`` (all of it)."""
        with open(self._out) as file:
            spans: dict[str, list[float]] = json.load(file)
        begin, end = spans.get("task_post_step", [0.0, 0.0])
        return {"post_step": end - begin, "after_code": spans["task"][1] - spans["step"][1]}


@contextlib.contextmanager
def task(
    package: Package,
    target: Target,
    work: str,
    *,
    commands: str = "commands",
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Task]:
    """Start a flow, yield its task, and let the flow end.

    Parameters
    ----------
    commands : str
        Module in ``flows/`` whose ``Commands`` the task obeys.
    options : mapping
        Of the decorator.
    environment : mapping
        More variables for the flow.
    """
    out = os.path.join(work, package.name, "spans.json")
    settings = {**flow_environment(package, work, target.environment), **(environment or {}), "BENCH_OUT": out}
    settings |= {"BENCH_COMMANDS": commands, "BENCH_OPTIONS": json.dumps({"show_card": False, **(options or {})})}
    with running_flow(package, "task_flow.py", settings, work, _END_S) as (listening, log):
        running = Task(listening, log, out)
        yield running
        running.close()


def numpy_directory() -> str:
    """A directory with NumPy for both packages' tasks: made once by pip, under the cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(cache, "async-ckpt-bench", f"numpy-{sys.version_info[0]}.{sys.version_info[1]}")
    if not os.path.exists(os.path.join(path, "numpy")):
        with tempfile.TemporaryDirectory(dir=_made(os.path.dirname(path))) as making:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", os.path.join(making, "new")]
            subprocess.run([*command, "numpy"], check=True)
            os.rename(os.path.join(making, "new"), path)
    return path


def has_torch(package: Package) -> bool:
    """Whether the package's environment has PyTorch; it is never installed for a benchmark."""
    return versions(package.python, ["torch"])["torch"] != "-"


def _made(directory: str) -> str:
    os.makedirs(directory, exist_ok=True)
    return directory

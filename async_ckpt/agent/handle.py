"""The agent's handles on its data plane: how a worker is started, found dead, and stopped. Light: no store is
imported here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading

from ..config import Config
from ..spool.spool import Spool


class WorkerProcess:
    """A worker in a process of its own; ``sock`` is the agent's end."""

    def __init__(self, spool: Spool, bootstrap: list[str]) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs, open(spool.path("agent.log"), "ab") as log:
            self._process = subprocess.Popen(
                [*bootstrap, "worker", str(theirs.fileno()), spool.directory],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Close the channel, and kill what does not follow."""
        self.sock.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WorkerThread:
    """A worker in a thread of the task."""

    def __init__(self, spool: Spool, config: Config) -> None:
        self.sock, theirs = socket.socketpair()
        self.pid = os.getpid()

        def run() -> None:
            import anyio

            from .worker import serve

            with theirs:
                anyio.run(serve, theirs, spool, config)

        self._thread = threading.Thread(target=run, name="async_ckpt-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self._thread.join(timeout=10)

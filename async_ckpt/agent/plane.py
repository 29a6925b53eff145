"""The agent's end of the data plane: starts a worker when there is work, talks to it, notices its death.

Light: no store is imported here. What a worker does stands in ``worker.py``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ..config import WORKER_START_S, Config
from ..errors import ProtocolError
from ..files import occupy_standard_streams
from ..ipc import protocol
from ..ipc.protocol import Message
from ..spool.spool import Spool

#: A worker may die so often in a row, without anything finished in between, before what it works on is given up.
MAX_DEATHS = 5

#: How long a worker may take to abort what it has under way, before it is killed.
_STOP_S = 5.0

#: Unit of the pause before a worker is started again: none after the first death, then doubling (seconds).
_PAUSE_S = 0.25


class Worker(Protocol):
    """A running worker: ``sock`` is the agent's end of the channel, ``pid`` its process."""

    sock: socket.socket

    @property
    def pid(self) -> int: ...
    def stop(self) -> None: ...


class DataPlane:
    """One worker at a time.

    Parameters
    ----------
    selector : selectors.BaseSelector
        The agent's; ``key.data(mask)`` is called when the channel is readable.
    start : callable
        Makes a worker.
    timeout_s : float
        A worker that takes no message for so many seconds is of no use.
    on_message : callable
        ``(message)``.
    on_death : callable
        ``(hopeless)``: the worker is gone and what it was told is to be told again; ``hopeless`` after ``MAX_DEATHS``
        in a row.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        start: Callable[[], Worker],
        timeout_s: float,
        on_message: Callable[[Message], None],
        on_death: Callable[[bool], None],
    ) -> None:
        self._selector, self._start, self._timeout_s = selector, start, timeout_s
        self._on_message, self._on_death = on_message, on_death
        self._worker: Worker | None = None
        self._decoder = protocol.Decoder()
        self._out = bytearray()
        self._taken = 0.0
        self._on_event: Callable[[int], None] = lambda mask: None
        self._deaths = 0
        self._not_before = 0.0
        self._idle = True
        self._started, self._heard = 0.0, False

    @property
    def is_awake(self) -> bool:
        """Whether there is a worker that has said something, or has had the time to."""
        has_had_time = time.monotonic() - self._started >= WORKER_START_S
        return self._worker is not None and (self._heard or has_had_time)

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    def ensure(self) -> bool:
        """Start a worker if there is none; False while it pauses after the last one's death."""
        if self._worker is None and time.monotonic() >= self._not_before:
            worker = self._worker = self._start()
            self._started, self._heard = time.monotonic(), False
            self._decoder = protocol.Decoder()
            worker.sock.setblocking(False)
            # Bound to this worker: it may have been given up by an earlier event of the same round.
            self._on_event = lambda mask: self._pump(worker, mask)
            self._selector.register(worker.sock, selectors.EVENT_READ, self._on_event)
            self.tell({"op": "priority", "idle": self._idle})
        return self._worker is not None

    def tell(self, *messages: Message) -> None:
        """Send messages, as soon as the worker takes them: one that still starts takes none, and is not waited for."""
        if self._worker is not None:
            if not self._out:
                self._taken = time.monotonic()
            for message in messages:
                self._out += protocol.encode(message)
            self._send(self._worker)

    def tick(self) -> None:
        """Give up a worker that takes no messages."""
        if self._out and time.monotonic() - self._taken > self._timeout_s:
            self._died()

    def _send(self, worker: Worker) -> None:
        try:
            sent = worker.sock.send(self._out, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._died()
            return
        if sent:
            self._taken = time.monotonic()
            del self._out[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._selector.get_key(worker.sock).events != events:
            self._selector.modify(worker.sock, events, self._on_event)

    def set_priority(self, *, idle: bool) -> None:
        """Whether the worker should take only the CPU time that nobody else wants."""
        if idle != self._idle:
            self._idle = idle
            if not idle and self._worker is not None and self._worker.pid != os.getpid():
                # On a busy machine an idle process would not come to hear of it.
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(self._worker.pid, os.SCHED_OTHER, os.sched_param(0))
            self.tell({"op": "priority", "idle": idle})

    def is_well(self) -> None:
        """Something was finished: earlier deaths do not count any more."""
        self._deaths = 0

    def _pump(self, worker: Worker, mask: int) -> None:
        if worker is self._worker and mask & selectors.EVENT_WRITE:
            self._send(worker)
        if worker is self._worker and mask & selectors.EVENT_READ:
            self._read(worker)

    def _read(self, worker: Worker) -> None:
        try:
            data, _ = protocol.receive(worker.sock)
            messages = self._decoder.feed(data, [])
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            data, messages = b"", []
        self._heard = self._heard or bool(messages)
        for message, _ in messages:
            self._on_message(message)
        if not data:
            self._died()

    def _died(self) -> None:
        if self._worker is None:
            return
        self.stop()
        self._deaths += 1
        self._not_before = time.monotonic() + _PAUSE_S * (2**self._deaths - 2)
        hopeless = self._deaths >= MAX_DEATHS
        if hopeless:
            self._deaths = 0
        self._on_death(hopeless)

    def renew(self) -> None:
        """End the worker, if there is one; the next one is told again what this one had not done."""
        if self._worker is not None:
            self.stop()
            self._on_death(False)

    def stop(self) -> None:
        """End the worker; it aborts what it has under way."""
        if self._worker is not None:
            self._selector.unregister(self._worker.sock)
            self._worker.stop()
            self._worker = None
            self._out.clear()


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, spool: Spool, bootstrap: list[str], role: str = "worker") -> None:
        occupy_standard_streams()  # The child has its own, in the place of whatever has these numbers.
        self.sock, theirs = socket.socketpair()
        with theirs, open(spool.path("agent.log"), "ab") as log:
            self._process = subprocess.Popen(
                [*bootstrap, role, str(theirs.fileno()), spool.directory],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self.sock.close()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # A process in an uninterruptible wait (a hung network file system) is left to its fate.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_STOP_S)


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
        self._thread.join(timeout=_STOP_S)

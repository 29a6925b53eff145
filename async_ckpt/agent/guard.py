"""Answers the kernel when somebody wants to write to a hard-linked file; see ``snapshot/lease.py``.

A thread of its own, because a trainer stands in ``open()`` until the answer comes. The signal is blocked in the whole
process and fetched with ``sigwaitinfo``; which lease it means is asked of each one (a microsecond each), which also
covers lost signals.

A trainer that rewrites a file in place once will do so at every save. So from then on that file is copied away right
after it was admitted, by a second thread, and the trainer need not wait when it comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue

from ..errors import SnapshotError
from ..snapshot import lease

#: How long the kernel waits for a lease before it breaks it by force, in seconds.
_BREAK_TIME_S = lease.break_time_s()

#: So many paths are remembered as rewritten in place; more than that is a pattern that remembering does not help.
_MAX_REWRITTEN = 10_000


@dataclass
class Held:
    """A leased file: its descriptor, the link's path, size (bytes) and mtime (nanoseconds) as captured, and the
    trainer's own path (``origin``).
    """

    fd: int
    path: str
    size: int
    mtime_ns: int
    origin: str
    busy: bool = False
    #: Monotonic time when the lease was last seen to stand; 0: never by us (another agent may have lost it before).
    stood: float = 0.0


class Guard:
    """Holds the leases of all snapshots.

    Parameters
    ----------
    on_private : callable
        ``(id, path, why)`` from the guard's thread after a file was made private and its lease let go; ``why`` is not
        empty if it could not be (the snapshot is lost then).
    """

    def __init__(self, on_private: Callable[[str, str, str], None]) -> None:
        self._on_private = on_private
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Held] = {}
        self._stopping = False
        self._rewritten: set[str] = set()
        self._early: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        threading.Thread(target=self._run_early, name="async_ckpt-guard-early", daemon=True).start()
        self._thread = threading.Thread(target=self._run, name="async_ckpt-guard", daemon=True)
        self._thread.start()

    def add(self, identity: str, path: str, held: Held) -> None:
        """Take over a lease; its descriptor belongs to the guard from now on."""
        with self._lock:
            previous = self._held.get((identity, path))
            if previous is not None:
                if lease.is_same(previous.fd, held.fd):  # Sent again over a new connection: one descriptor is enough.
                    os.close(held.fd)
                    return
                # A load has linked the file and took a lease of its own: one is enough, and a writer waits for all.
                # The new one, whose process lives; unless the file is about to be nobody else's.
                if previous.busy:
                    lease.release(held.fd)
                    os.close(held.fd)
                    return
                held.stood = previous.stood
                lease.release(previous.fd)
                os.close(previous.fd)
            self._held[identity, path] = held
            if held.origin in self._rewritten:
                self._early.put((identity, path))
            # Under the lock: a moment later another thread may have dealt with it and closed the descriptor.
            if lease.is_breaking(held.fd):
                self._wake()
            else:
                held.stood = time.monotonic()

    def let_go(self, identity: str, paths: Iterable[str] | None = None) -> list[str]:
        """Release leases without a copy: the bytes are in the store. Returns the paths released."""
        released = []
        with self._lock:
            keys = (
                [key for key in self._held if key[0] == identity] if paths is None else [(identity, p) for p in paths]
            )
            for key in keys:
                held = self._held.get(key)
                if held is not None and not held.busy:
                    del self._held[key]
                    lease.release(held.fd)
                    os.close(held.fd)
                    released.append(key[1])
        return released

    def stands(self, identity: str, path: str) -> bool:
        """Whether the lease of a file has held until now, so that nobody can have written to it whatever its times
        say.
        """
        with self._lock:
            held = self._held.get((identity, path))
            return held is not None and not held.busy and not lease.is_breaking(held.fd)

    def count(self) -> int:
        return len(self._held)

    def make_all_private(self) -> None:
        """Before an agent retires with work left: every snapshot is made to stand on its own."""
        with self._lock:
            todo = [key for key, held in self._held.items() if not held.busy]
            for key in todo:
                self._held[key].busy = True
        self._make_private(todo)

    def stop(self) -> None:
        self._stopping = True
        self._early.put(None)
        self._wake()
        self._thread.join(timeout=5)

    def _wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getpid(), lease.LEASE_SIGNAL)

    def _run(self) -> None:
        while not self._stopping:
            # The time limit is for a signal lost with a full queue.
            signal.sigtimedwait([lease.LEASE_SIGNAL], 1.0)
            with self._lock:
                now, todo = time.monotonic(), []
                for key, held in self._held.items():
                    if held.busy:
                        continue
                    if lease.is_breaking(held.fd):
                        todo.append(key)
                    else:
                        held.stood = now
                for key in todo:
                    self._held[key].busy = True
                    if len(self._rewritten) < _MAX_REWRITTEN:
                        self._rewritten.add(self._held[key].origin)
            self._make_private(todo)

    def _run_early(self) -> None:
        while (key := self._early.get()) is not None:
            with self._lock:
                held = self._held.get(key)
                if held is None or held.busy:
                    continue
                held.busy = True
            self._make_private([key])

    def _make_private(self, keys: list[tuple[str, str]]) -> None:
        # One inode may be in several snapshots: the first copy serves them all.
        donors: dict[tuple[int, int, int], str] = {}
        for key in keys:
            held = self._held[key]
            why = ""
            status = os.fstat(held.fd)
            inode = status.st_ino
            if time.monotonic() < held.stood + _BREAK_TIME_S / 2 or not lease.is_breaking(held.fd):
                # Nobody wrote; another time than the captured one was set without writing (touch, copystat).
                held.mtime_ns = status.st_mtime_ns
            donor = donors.get((inode, held.size, held.mtime_ns))
            try:
                if lease.make_private(held.path, held.fd, held.size, held.mtime_ns, donor=donor):
                    donors[inode, held.size, held.mtime_ns] = held.path
            except SnapshotError as error:
                why = str(error)
            with self._lock:
                del self._held[key]
            lease.release(held.fd)
            os.close(held.fd)
            self._on_private(*key, why)

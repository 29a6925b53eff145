"""Snapshots on file systems that do not answer: a network disk that is gone, a FUSE mount whose server hangs.

Whoever looks into such a folder may never come back. So a new agent, which may stand in for one that did not come back,
has each folder looked into by a thread that may be left behind. A folder that does not answer is left alone until it
does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from ..config import REACH_S, Config
from ..spool.records import Admitted
from ..spool.spool import Spool
from ..system.clock import Clock
from .queue import Queue


class Unreachable:
    """Checkpoints that lie where nobody answers: they are pending, hold up nobody, and come in when somebody does."""

    def __init__(self, spool: Spool, queue: Queue, config: Config, clock: Clock) -> None:
        self._spool, self._queue = spool, queue
        self._items: dict[str, Admitted] = {}
        self._until = clock.monotonic() + config.outage_s
        #: Folders that have not answered, each with the thread that looks into it.
        self._asked: dict[str, threading.Thread] = {}
        for folder in spool.snapshots.annexes():
            thread = threading.Thread(target=_look_into, args=(folder,), name="async_ckpt-probe", daemon=True)
            with contextlib.suppress(RuntimeError):  # No more threads: then nobody looks.
                thread.start()
                self._asked[folder] = thread
        deadline = time.monotonic() + min(REACH_S, config.hung_s / 2)
        for thread in self._asked.values():
            thread.join(max(deadline - time.monotonic(), 0.0))
        self._hear()

    def _hear(self) -> set[str]:
        """Folders that answer now, and did not before."""
        answer = {folder for folder, thread in self._asked.items() if not thread.is_alive()}
        for folder in answer:
            del self._asked[folder]
        self._spool.snapshots.silent = frozenset(self._asked)
        return answer

    def has(self, identity: str) -> bool:
        """Whether it is one of these."""
        return identity in self._items

    def take(self, item: Admitted) -> str:
        """Leave it alone if it lies where nobody answers: returns what people should know of that."""
        folder = os.path.dirname(item.data)
        if folder not in self._spool.snapshots.silent:
            return ""
        job = self._queue.add(item.id, item.order, item.size)
        job.why = f"the file system of {folder} does not answer"
        self._queue.pause(item.id)
        self._queue.pass_by(item.id)
        self._items[item.id] = item
        return f"{job.why}: what lies there is stored when it does, if that is soon; all else goes on"

    def came_back(self) -> list[Admitted]:
        """Those whose file system answers now, once."""
        if not self._items:
            return []
        answer = self._hear()
        back = [item for item in self._items.values() if os.path.dirname(item.data) in answer]
        for item in back:
            del self._items[item.id]
        return back

    def given_up(self, now: float) -> list[str]:
        """Ids of those that were waited for long enough (``now``: monotonic seconds), once."""
        if now < self._until:
            return []
        lost = list(self._items)
        self._items.clear()
        return lost


def _look_into(folder: str) -> None:
    with contextlib.suppress(OSError):  # Any answer is one.
        os.listdir(folder)

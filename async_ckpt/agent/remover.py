"""Gives back the disk of checkpoints that nobody needs any more, in a thread of its own.

To remove gigabytes, a file system may take seconds (ext4 waits for its journal), in which the agent has to answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue

from ..capture.snapshot import remove_snapshot
from ..errors import os_reason
from ..spool.records import Admitted
from ..spool.spool import Spool


class Remover:
    """Removes snapshots one after the other; what it has not reached when the agent dies, the next agent removes.

    What waits for it lies on the disk, which bounds it.

    Parameters
    ----------
    spool : Spool
        Theirs.
    on_idle : callable
        Called in the thread when nothing is left to remove.
    on_error : callable
        Called in the thread with what could not be removed, and why.
    """

    def __init__(self, spool: Spool, on_idle: Callable[[], None], on_error: Callable[[str], None]) -> None:
        self._spool, self._on_idle, self._on_error = spool, on_idle, on_error
        self._todo: Queue[tuple[str, str] | None] = Queue()
        threading.Thread(target=self._run, name="async_ckpt-remover", daemon=True).start()

    @property
    def idle(self) -> bool:
        return not self._todo.unfinished_tasks

    def remove(self, item: Admitted) -> None:
        """Remove a checkpoint's snapshot, and then its record: a crash in between leaves nothing without an owner."""
        self._todo.put((item.id, item.data))

    def stop(self) -> None:
        """Begin nothing new."""
        self._todo.put(None)

    def _run(self) -> None:
        while (todo := self._todo.get()) is not None:
            self._remove(*todo)

    def _remove(self, identity: str, data: str) -> None:
        try:
            remove_snapshot(data)
            self._spool.records.drop(identity)
        except OSError as error:
            self._on_error(f"The snapshot of {identity}, {data}, cannot be removed: {os_reason(error)}")
        self._todo.task_done()
        if self.idle:
            self._on_idle()

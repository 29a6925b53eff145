"""A node of a gang whose task has died will not save any more: the others need not wait for it.

Said through the store, and only once everything the task had saved is there.
"""

from __future__ import annotations

from ..layout import TaskInfo
from .child import Child


class Farewell:
    """Says it, once for each attempt."""

    def __init__(self, task: TaskInfo, worker: Child) -> None:
        self._is_gang, self._worker = task.nodes > 1, worker
        self._due: int | None = None
        self._ordered = False

    def owner_died(self, attempt: int) -> None:
        """The task's process is gone, without a word."""
        if self._is_gang:
            self._due, self._ordered = attempt, False

    @property
    def is_due(self) -> bool:
        """Whether it is still to be said."""
        return self._due is not None

    def tick(self) -> None:
        """Nothing that the task saved is on its way any more."""
        if self._due is not None and not self._ordered and self._worker.ensure():
            self._ordered = True
            self._worker.tell({"op": "gone", "id": "", "attempt": self._due})

    def said(self) -> None:
        """The worker has said it; or cannot, and the others will have to wait."""
        self._due = None

    def worker_died(self) -> None:
        """It may not have been said."""
        self._ordered = False

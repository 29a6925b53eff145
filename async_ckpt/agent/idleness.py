"""Whether the task does anything: one that only waits is not slowed down by an upload."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..config import IDLE_AFTER_S, IDLE_LOOK_S, IDLE_SHARE
from ..system.processes import cpu_seconds


class Idleness:
    """Looks now and then how much CPU time the task's processes, and those that they have started, have used. All
    times are monotonic seconds.

    Parameters
    ----------
    used : callable
        Seconds of CPU time of a process and its descendants, without some; None: that cannot be told.
    """

    def __init__(self, used: Callable[[int, Collection[int]], float | None] = cpu_seconds) -> None:
        self._used = used
        self._looked = self._before = self._since = 0.0

    def look(self, now: float, pids: Collection[int], ours: Collection[int]) -> bool:
        """Whether these processes have done next to nothing for a while. ``ours`` are not theirs, whoever has started
        them. It is to be asked all the time: one who was not for long begins anew.
        """
        if now - self._looked < IDLE_LOOK_S:
            return now - self._since >= IDLE_AFTER_S
        found = [self._used(pid, ours) for pid in pids]
        total = sum(filter(None, found))
        span, self._looked = now - self._looked, now
        is_still = None not in found and 0 <= total - self._before < IDLE_SHARE * span and span < 2 * IDLE_LOOK_S
        if not is_still:
            self._since = now
        self._before = total
        return now - self._since >= IDLE_AFTER_S

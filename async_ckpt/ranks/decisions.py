"""Ranks on one machine decide alike whether to save, and none of them waits for another one in each step.

Rank 0 decides in its n-th call what all ranks do in their call n + 1, and writes that into memory that they share.
Ranks that train together have exchanged something since then (gradients, as a rule), so whoever comes to that call
finds the decision there. One that is ahead of rank 0 all the same waits for it, for a limited time.

The shared file is an array of 64-bit numbers: how many calls of rank 0 are done; how many saves it has ordered; and, in
a ring, in which calls. Each is written before those that say that it is there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from ..config import DECISION_LOOK_S
from ..errors import WaitTimeout
from ..spool.directories import spool_errors
from ..system.clock import Clock

_WORDS = mmap.PAGESIZE // 8
_DONE, _ORDERED, _RING = 0, 1, 2
_RING_LENGTH = _WORDS - _RING


class Decisions:
    """One rank's end of the shared file.

    Parameters
    ----------
    path : str
        The file; of these ranks alone, which were started together. Whoever comes first makes it.
    rank : int
        From 0.
    limit_s : float
        How many seconds rank 0 is waited for at most.

    Raises
    ------
    SpoolError
        The file cannot be made.
    """

    def __init__(self, path: str, rank: int, clock: Clock, limit_s: float) -> None:
        self._path, self._rank, self._clock, self._limit_s = path, rank, clock, limit_s
        self._calls = self._saves = 0
        with spool_errors("Ranks cannot decide together whether to save", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, _WORDS * 8)  # It is all zeros, or as long already.
                self._words = memoryview(mmap.mmap(fd, _WORDS * 8)).cast("Q")
            finally:
                os.close(fd)

    def next(self, decide: Callable[[], bool]) -> bool:
        """Whether to save in this call.

        Parameters
        ----------
        decide : callable
            Rank 0 is asked whether to save in the next one.

        Raises
        ------
        WaitTimeout
            Rank 0 has not made the call before this one.
        """
        self._calls += 1
        if self._words[_DONE] < self._calls - 1:
            self._wait()
        is_due = self._saves < self._words[_ORDERED] and self._words[self._place(self._saves)] == self._calls
        self._saves += is_due
        if self._rank == 0:
            # In the call in which all save, nothing was saved yet that would count.
            if not is_due and decide():
                ordered = self._words[_ORDERED]
                self._words[self._place(ordered)] = self._calls + 1
                self._words[_ORDERED] = ordered + 1
            self._words[_DONE] = self._calls
        return is_due

    @staticmethod
    def _place(save: int) -> int:
        return _RING + save % _RING_LENGTH

    def _wait(self) -> None:
        deadline = self._clock.monotonic() + self._limit_s
        while self._words[_DONE] < self._calls - 1:
            if self._clock.monotonic() >= deadline:
                raise WaitTimeout(
                    f"Rank {self._rank} has asked {self._calls} times whether to save, and rank 0 only "
                    f"{self._words[_DONE]} times after {self._limit_s:g} s",
                    where=self._path,
                    hint="Let all ranks call due() in each step; see whether rank 0 has failed",
                )
            self._clock.sleep(DECISION_LOOK_S)

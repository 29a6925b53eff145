"""How long the training's steps take, told to the agent now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..config import STEPS_SHORT_S, STEPS_TELL_S


class StepTimer:
    """Measures from one call of ``step`` to the next, in less than a microsecond. About once a second it tells the
    agent.

    Parameters
    ----------
    tell : callable
        Sends a message to the agent, if there is one. It never waits.
    now : callable
        Monotonic seconds.
    """

    def __init__(self, tell: Callable[..., None], now: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._now = tell, now
        self._times: list[float] = []
        #: How many steps were ended since when; None: before the first.
        self._count = 0
        self._began: float | None = None
        self._told = 0.0

    def step(self) -> None:
        """A step has ended, and the next one begins."""
        now = self._now()
        if self._began is None:
            self._began = self._told = now
            return
        self._count += 1
        took = now - self._began
        if took < STEPS_SHORT_S:
            return
        self._times.append(took / self._count)
        self._began, self._count = now, 0
        if now - self._told >= STEPS_TELL_S:
            times, self._times, self._told = self._times, [], now
            self._tell("steps", times=times)

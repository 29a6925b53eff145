"""The clock that is handed to whatever waits or measures time. Tests hand in one that only goes on when told to."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What is used of the module ``time``."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""

    def time(self) -> float:
        """Seconds since 1970."""

    def time_ns(self) -> int:
        """The same in nanoseconds."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


REAL_CLOCK: Clock = time

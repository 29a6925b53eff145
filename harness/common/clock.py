"""A clock that stands still."""

from __future__ import annotations


class StillClock:
    """Goes on when it is told to; its times are in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.time_ns() / 1e9

    def time_ns(self) -> int:
        return int((1e9 + self.now) * 1e9)

    def clock_gettime(self, clock: int) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

"""The clock that is handed to whatever waits or measures time. Tests hand in one that only goes on when told to.

A ``Moment`` is what is written down of one, so that its age can be told later, also by another process.
"""

from __future__ import annotations

import functools
import math
import os
import time
from typing import Any, NamedTuple, Protocol


class Clock(Protocol):
    """What is used of the module ``time``."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""

    def time(self) -> float:
        """Seconds since 1970."""

    def time_ns(self) -> int:
        """The same in nanoseconds."""

    def clock_gettime(self, clock: int, /) -> float:
        """Seconds by one of the kernel's clocks."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


REAL_CLOCK: Clock = time


class Moment(NamedTuple):
    """A moment on this machine.

    Parameters
    ----------
    since_boot_s : float
        Seconds since the machine was booted, those in which it was suspended included. Nobody can set that clock.
    boot : str
        Which boot that was, and whose clock (see ``_boot``); empty: not known.
    wall_ns : int
        Wall time in nanoseconds since 1970.
    """

    since_boot_s: float
    boot: str
    wall_ns: int

    def age_s(self, now: Moment) -> float:
        """Seconds from this moment until ``now``; of one in an earlier boot, by the wall clock, but no less than the
        time since the machine was booted.
        """
        if self.boot == now.boot:
            return max(now.since_boot_s - self.since_boot_s, 0.0)
        by_wall = max((now.wall_ns - self.wall_ns) / 1e9, 0.0)
        is_earlier_boot = self.boot and self.boot.partition(" ")[0] != now.boot.partition(" ")[0]
        return max(by_wall, now.since_boot_s) if is_earlier_boot else by_wall

    def back_to(self, wall_ns: int) -> Moment:
        """The earlier moment in which a file was written (wall time in nanoseconds), as seen now; of one that is said
        to be written later than now, this one. The wall time stays.
        """
        back_s = max((self.wall_ns - wall_ns) / 1e9, 0.0)
        return self._replace(since_boot_s=max(self.since_boot_s - back_s, 0.0))


def moment(clock: Clock) -> Moment:
    """This one."""
    return Moment(clock.clock_gettime(time.CLOCK_BOOTTIME), _boot(), clock.time_ns())


def read_moment(value: Any) -> Moment | None:
    """A moment as it comes back from JSON; None if that is none."""
    if not isinstance(value, list) or [type(item) for item in value] not in ([float, str, int], [int, str, int]):
        return None
    return Moment(float(value[0]), value[1], value[2]) if 0 <= value[0] < math.inf and abs(value[2]) < 1 << 63 else None


@functools.cache
def _boot() -> str:
    """The boot's number, and the namespace of its clocks: in another one the same moment has another number."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        return ""
    try:
        return f"{boot} {os.readlink('/proc/self/ns/time')}"
    except OSError:  # A kernel that has none.
        return boot

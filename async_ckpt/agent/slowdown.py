"""How much slower the training is while something is uploaded.

By its own steps, where it tells how long they take (``current.checkpoint.step()``): those of moments in which something
is uploaded are compared with the last ones in which nothing was. Else by what the kernel says of this cgroup, or of the
machine: for which share of the last ten seconds all that runs in it waited for a disk or for memory (PSI, Linux 4.20
and later, and not on every one). What it says of the CPU is of no use here, as an uploader of idle priority that waits
for its turn counts like everybody else.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict, deque
from collections.abc import Sequence

from ..config import (
    PRESSURE_SHARE,
    SLOWDOWN_LOOK_S,
    STEPS_CLIPPED,
    STEPS_JUDGED,
    STEPS_LEAST,
    STEPS_LONGEST_S,
    STEPS_PROCESSES,
    Config,
)

#: Between a step and the message that tells of it, in seconds.
_LATE_S = 0.5


class Slowdown:
    """See the module's docstring. All times are monotonic seconds.

    Parameters
    ----------
    most : float
        By which share steps may be longer; ``Config.max_slowdown``.
    pressure : Pressure
        What the kernel says.
    """

    def __init__(self, most: float, pressure: Pressure) -> None:
        self._most, self._pressure = most, pressure
        #: Steps of moments without an upload, by the process that told of them, and how the others compare with them.
        self._quiet: OrderedDict[int, deque[float]] = OrderedDict()
        self._ratios: deque[float] = deque(maxlen=STEPS_JUDGED)
        self._is_uploading, self._since = False, 0.0
        self._next_look = 0.0
        self._heard = -math.inf

    def see(self, now: float, *, is_uploading: bool) -> None:
        """Whether something is being uploaded."""
        if is_uploading != self._is_uploading:
            self._is_uploading, self._since = is_uploading, now

    def heard(self, who: int, times: Sequence[float], now: float) -> None:
        """A process has told how long its last steps took, in seconds. Those of a moment in which an upload began or
        ended count for nothing.
        """
        self._heard = now
        if now - self._since < sum(times) + _LATE_S:
            return
        quiet = self._quiet.setdefault(who, deque(maxlen=STEPS_JUDGED))
        self._quiet.move_to_end(who)
        if len(self._quiet) > STEPS_PROCESSES:
            self._quiet.popitem(last=False)
        if not self._is_uploading:
            quiet.extend(times)
        elif len(quiet) >= STEPS_LEAST:
            usual = sorted(quiet)[len(quiet) // 2]
            # A step with a save or an evaluation in it tells nothing: it counts no more than twice the usual one.
            mean = sum(min(time / usual, STEPS_CLIPPED) for time in quiet) / len(quiet)
            self._ratios.extend(min(time / usual, STEPS_CLIPPED) / mean for time in times)

    def is_training(self, now: float) -> bool:
        """Whether a step has ended a while ago, or later."""
        return now - self._heard < STEPS_LONGEST_S

    @property
    def lacks_steps(self) -> bool:
        """Whether somebody has chosen how much longer steps may be, and nobody tells how long they are."""
        return self._most != Config.max_slowdown and self._heard == -math.inf

    def begin_anew(self) -> None:
        """Uploads have another rate from now on."""
        self._ratios.clear()

    @property
    def share(self) -> float | None:
        """By which share steps are longer during uploads; None: that is not known (yet)."""
        return sum(self._ratios) / len(self._ratios) - 1 if len(self._ratios) >= STEPS_LEAST else None

    @property
    def pressure(self) -> float | None:
        """For which share of the last seconds all that runs here waited for a disk or for memory."""
        return self._pressure.share()

    def look(self, now: float) -> bool | None:
        """Whether uploads are felt more than they may be; None: as before, it is too early to look again, or nothing is
        known.
        """
        if now < self._next_look:
            return None
        self._next_look = now + SLOWDOWN_LOOK_S
        share = self.share
        if share is not None:
            return None if self._most / 2 < share <= self._most else share > self._most
        pressure = self.pressure
        return None if pressure is None else pressure > PRESSURE_SHARE

    @property
    def why(self) -> str:
        """How it is felt, for people."""
        share = self.share
        if share is not None:
            return f"steps take {share:.1%} longer meanwhile (max_slowdown is {self._most:.1%})"
        return f"all that runs here waits for a disk or for memory for {self.pressure or 0:.0%} of the time"


class Pressure:
    """What the kernel tells of this process's cgroup, or else of the machine.

    Parameters
    ----------
    root : str
        Where ``proc`` and ``sys`` are.
    """

    def __init__(self, root: str = "/") -> None:
        self._folders = [os.path.join(root, "proc/pressure/{}")]
        with contextlib.suppress(OSError), open(os.path.join(root, "proc/self/cgroup")) as file:
            for line in file:
                if line.startswith("0::/"):
                    own = os.path.join(root, "sys/fs/cgroup", line[4:].strip())
                    self._folders.insert(0, os.path.join(own, "{}.pressure"))

    def share(self) -> float | None:
        """For which share of the last ten seconds all that runs there waited for a disk or for memory, whichever is
        more; None: this kernel does not tell.
        """
        for folder in self._folders:
            found = [share for what in ("io", "memory") if (share := _full_avg10(folder.format(what))) is not None]
            if found:
                return max(found)
        return None


def _full_avg10(path: str) -> float | None:
    """Of lines such as ``full avg10=1.53 avg60=0.87 avg300=0.73 total=1234``."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for line in file:
            if line.startswith("full avg10="):
                return float(line.split()[1].partition("=")[2]) / 100
    return None

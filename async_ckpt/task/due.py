"""Whether to save now: ``current.checkpoint.due()``. A loop asks in each step, so nothing is waited for here, and the
store is not asked: what the agent knows stands in the spool (``spool/recovery.py``).
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections import deque
from typing import Any

from .. import layout
from ..config import DUE_ASSUMED_S, DUE_MEASURED, Config
from ..errors import UsageError
from ..ranks import who
from ..ranks.decisions import Decisions
from ..spool import recovery
from ..spool.recovery import Recovery
from ..spool.spool import Spool
from ..system import durations
from ..system.clock import Clock, Moment, moment

AUTO = "auto"


def best_interval_s(cost_s: float, mtbf_s: float) -> float:
    """The time from one checkpoint to the next that loses least: seconds of work between them, and their cost.

    The optimum of Young's first order, ``sqrt(2 * cost * mtbf)``, with the higher orders of Daly, equation 37, which
    hold also where failures are so frequent that it comes near to the mean time between them.

    - J. W. Young: A first order approximation to the optimum checkpoint interval. Communications of the ACM 17(9),
      1974, pages 530-531. https://doi.org/10.1145/361147.361115
    - J. T. Daly: A higher order estimate of the optimum checkpoint interval for restart dumps. Future Generation
      Computer Systems 22(3), 2006, pages 303-312. https://doi.org/10.1016/j.future.2004.11.016

    Parameters
    ----------
    cost_s : float
        What one checkpoint takes from the training, in seconds.
    mtbf_s : float
        Mean time between failures, in seconds.
    """
    if cost_s >= 2 * mtbf_s:
        return mtbf_s + cost_s
    ratio = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9)


class Due:
    """Decides for one process.

    Parameters
    ----------
    spool : Spool
        The task's.
    began : Moment or None
        When the attempt began; None: as the agent says.
    """

    def __init__(self, spool: Spool, config: Config, clock: Clock, began: Moment | None = None) -> None:
        self._spool, self._config, self._clock = spool, config, clock
        self._path = spool.path(recovery.NAME)
        self._began = -math.inf if began is None else began.since_boot_s
        #: When this process has saved last, when it heard that it is to end, and when it was told last to save, if it
        #: has not done so since.
        self._own, self._told_to_end, self._asked = -math.inf, -math.inf, math.nan
        self._costs: deque[float] = deque(maxlen=DUE_MEASURED)
        #: What the agent has written down, as it was when it was read last: (inode, mtime in nanoseconds).
        self._seen: tuple[int, int] | None = None
        self._known, self._saved, self._ends = Recovery(), -math.inf, -math.inf
        self._decisions: Decisions | None = None
        self._measure()

    # -- what this process does ----------------------------------------------------------------------------------------

    def saved(self, captured: Moment, *, latest: bool) -> None:
        """This process has saved, and goes on now."""
        is_answer = self._asked <= captured.since_boot_s
        if latest or is_answer:  # Another one that a retry does not load, such as the best so far, protects nothing.
            self._own = captured.since_boot_s
        # What comes before a save, such as torch.save(), costs as well, where it is known when that began.
        began = self._asked if is_answer else captured.since_boot_s
        self._costs.append(max(self._now() - began, 0.0))
        self._asked = math.nan
        self._measure()

    def end_is_told(self) -> None:
        """This process is to end soon. From any thread."""
        self._told_to_end = self._now()

    # -- the question --------------------------------------------------------------------------------------------------

    def is_due(self, every: Any, collective: bool | None) -> bool:
        """See ``current.checkpoint.due``."""
        interval_s = _interval_s(every)
        is_due = self._decided_together(interval_s) if collective else self._decided_alone(interval_s, collective)
        if is_due:
            self._asked = self._now()
        return is_due

    def _decided_alone(self, interval_s: float, collective: bool | None) -> bool:
        if collective is None and self._is_rank:
            raise UsageError(
                "Each rank would decide for itself whether to save",
                hint="due(collective=True) decides alike on all ranks of one machine, for saves with collective=True; "
                "due(collective=False) is for a rank that saves for itself",
            )
        return self._decide(interval_s, own=collective is False)

    def _decide(self, interval_s: float, *, own: bool = False) -> bool:
        self._look()
        now = self._now()
        last = self._own if own else max(self._own, self._saved)
        if self._began == -math.inf:  # The agent has not said it yet.
            self._began = now
        told = max(self._ends, self._told_to_end)
        return told > last or now - max(last, self._began) >= (interval_s or self._measured_interval_s)

    @property
    def _measured_interval_s(self) -> float:
        """While the one before is on its way another one would wait for it. An upload that takes too long is an
        outage, in which what is only on this disk still survives the process.
        """
        return max(self._auto_s, self._config.outage_s) if self._known.is_on_its_way else self._auto_s

    def _now(self) -> float:
        return self._clock.clock_gettime(time.CLOCK_BOOTTIME)

    def _look(self) -> None:
        """Read what the agent has written down, if it is new."""
        try:
            status = os.stat(self._path)
        except OSError:  # It will be written again.
            return
        seen = status.st_ino, status.st_mtime_ns
        if seen == self._seen:
            return
        self._seen, found = seen, recovery.read(self._spool.directory)
        if found.attempt != self._spool.task.attempt:
            return  # Of an earlier attempt.
        self._known, now = found, moment(self._clock)

        def at(when: Moment | None) -> float:
            """In this process's own seconds."""
            return -math.inf if when is None else now.since_boot_s - when.age_s(now)

        self._saved, self._ends = at(found.saved), max(map(at, found.ends.values()), default=-math.inf)
        self._began = self._began if self._began > -math.inf else at(found.began)
        self._measure()

    def _measure(self) -> None:
        """How long to wait between saves where nobody says it."""
        upload_s = _median(self._known.upload_s)
        cost_s = _median(self._costs or [DUE_ASSUMED_S]) + self._config.max_slowdown * upload_s
        best_s = best_interval_s(cost_s, self._config.mtbf_s / max(self._spool.task.nodes, 1))
        self._auto_s = max(best_s, upload_s)

    # -- ranks ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _is_rank(self) -> bool:
        return who.count(self._spool.task) > 1

    def _decided_together(self, interval_s: float) -> bool:
        """Rank 0 decides for the next call of all ranks."""
        if self._decisions is None:
            ranks = who.find(self._spool.task)
            if not who.are_on_this_machine(self._spool.task, ranks):
                raise UsageError(
                    "Ranks on several machines cannot decide together whether to save",
                    hint="Let rank 0 ask due(collective=False), and broadcast the answer: docs/exposure.md shows how",
                )
            group = layout.short_hash([ranks.launch, ranks.world], 16)
            path = self._spool.path(f"due.{self._spool.task.attempt}.{group}")
            self._decisions = Decisions(path, ranks.rank, self._clock, self._config.settle_timeout_s)
        return self._decisions.next(lambda: self._decide(interval_s))


@functools.lru_cache(maxsize=64, typed=True)
def _known_interval_s(every: Any) -> float:
    if isinstance(every, str) and every.strip().lower() == AUTO:
        return 0.0
    try:
        return durations.seconds(every)
    except ValueError:
        raise UsageError(f"every={every!r} is not valid", hint=f"It is {AUTO!r}, or {durations.ALLOWED}") from None


def _interval_s(every: Any) -> float:
    """Seconds; 0: as measured."""
    try:
        return _known_interval_s(every)
    except TypeError:  # It cannot be kept, as a list or an array.
        return _known_interval_s(str(every))


def _median(values: Any) -> float:
    """The middle one, or the smaller one of two, as the first may have waited for something; 0 where there are none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0

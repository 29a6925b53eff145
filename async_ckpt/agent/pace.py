"""How fast to send: as fast as the interval between saves asks for while somebody trains, and not as fast as can be.

A checkpoint is to be in the store when half of the time until the next save of its name is over. That time is taken to
be the shortest of the last few, so that whoever begins to save more often finds no backlog. Each look begins anew with
what is left to send and with the time that is left for it: an upload that got on more slowly than was planned is sent
faster and faster, and at full speed from half of the interval on.

If the training is slower meanwhile than without an upload (``Slowdown``), uploads take longer than that: at most as
much longer as they would take at full speed. So none ends later than it would without a pace by more than half of the
interval.

While a large file is copied that the trainer rewrites in place, next to nothing is sent: the trainer waits for the
copy, which takes twice as long beside an upload that reads and writes as much.

Sent at full speed is whatever is in a hurry (the agent says so), and what there is no interval for: the first
checkpoint of a task also shows what the store takes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from ..config import (
    PACE_AGAIN_SHARE,
    PACE_ASSUMED_S,
    PACE_CHANGE_S,
    PACE_CHANGE_SHARE,
    PACE_FULL_SHARE,
    PACE_HELD_BYTES_S,
    PACE_INTERVALS,
    PACE_LAST_SHARE,
    PACE_LEAST_BYTES_S,
    PACE_MOST_S,
    PACE_NAMES,
    PACE_SHARE,
    PACE_SMALL_BYTES,
)
from .job import Job
from .slowdown import Slowdown

#: How much of the additional time is taken more, or less, each time that it was looked how the training gets on.
_SLACK_STEP = 0.25


class Order(NamedTuple):
    """What the uploader is told: bytes a second, 0 for as many as the store takes; and why, for people."""

    bytes_per_s: int
    why: str


_HELD = Order(PACE_HELD_BYTES_S, "a large file is copied first, as the trainer rewrites it in place")


class _Gaps:
    """Seconds between saves: the last few, and the shortest of them, 0 where there is none."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._gaps: deque[float] = deque(maxlen=PACE_INTERVALS)

    def saved(self, now: float) -> None:
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now

    @property
    def shortest(self) -> float:
        return min(self._gaps, default=0.0)


class Intervals:
    """How long it is from one save to the next."""

    def __init__(self) -> None:
        self._all = _Gaps()
        self._named: OrderedDict[str, _Gaps] = OrderedDict()

    def saved(self, name: str, now: float) -> float:
        """A checkpoint was saved (``now``: monotonic seconds). Returns for how many seconds there is likely to be none
        of its name; 0: nobody knows.

        A name that was saved once goes by the others. Where no name was saved twice, all saves are looked at as one.
        """
        self._all.saved(now)
        own = self._named.setdefault(name, _Gaps())
        self._named.move_to_end(name)
        if len(self._named) > PACE_NAMES:
            self._named.popitem(last=False)
        own.saved(now)
        others = (gaps.shortest for gaps in self._named.values() if gaps.shortest)
        return own.shortest or min(others, default=self._all.shortest)


class Pace:
    """See the module's docstring. It knows no clock: all times are monotonic seconds that it is told.

    Parameters
    ----------
    slowdown : Slowdown
        How much slower the training is while something is uploaded.
    most_s : float
        How many seconds a checkpoint may take because of the pace, however rarely one is saved: others may wait for it.
        ``PACE_MOST_S`` counts if it is less.
    """

    def __init__(self, slowdown: Slowdown, most_s: float = PACE_MOST_S) -> None:
        self.slowdown, self._most_s = slowdown, min(most_s, PACE_MOST_S)
        self._intervals = Intervals()
        #: Which share of the additional time is taken, and why.
        self._slack, self._slack_why = 0.0, ""
        self._changed = 0.0
        self.order = self._decided = Order(0, "nothing is being uploaded")
        self._notices: list[str] = []
        #: Saves that were seen before anybody has told of steps, and whether it was said what cannot be had.
        self._saves, self._is_conflict_said = 0, False

    def saved(self, job: Job, now: float) -> None:
        """A checkpoint was admitted."""
        job.saved_at, job.every_s = now, self._intervals.saved(job.name, now)
        self._saves += 1
        if self._saves == PACE_INTERVALS and self.slowdown.lacks_steps:
            self._notices.append(
                "max_slowdown counts for uploads where the training tells of its steps, and it has not yet: call "
                "current.checkpoint.step() after each"
            )

    def news(self) -> str:
        """What the user should know, once; empty: nothing new."""
        return self._notices.pop(0) if self._notices else ""

    def look(self, now: float, jobs: Sequence[Job], known: float, hurry: str, *, held: bool = False) -> Order:
        """What to do now.

        Parameters
        ----------
        jobs : sequence of Job
            What is to be uploaded, oldest first.
        known : float
            Bytes a second that the store takes; 0: nobody knows.
        hurry : str
            Why to send at full speed; empty: there is no reason.
        held : bool
            A large file is copied for which a writer waits, or will: whatever is sent meanwhile makes that longer.
        """
        self.slowdown.see(now, is_uploading=bool(jobs))
        order = Order(0, hurry) if hurry else self._decide(now, jobs, known)
        before = self._decided.bytes_per_s
        if order.bytes_per_s and before:
            is_small = abs(order.bytes_per_s - before) <= PACE_CHANGE_SHARE * before
            if is_small or now - self._changed < PACE_CHANGE_S:
                order = order._replace(bytes_per_s=before)
        elif order.bytes_per_s != before:
            self.slowdown.begin_anew()
        if order.bytes_per_s != before:
            self._changed = now
        self._decided = order
        self.order = _HELD if held else order
        return self.order

    def _decide(self, now: float, jobs: Sequence[Job], known: float) -> Order:
        if not jobs:
            return Order(0, "nothing is being uploaded")
        self._listen(now)
        total, rate, every, usual_s = 0, float(PACE_LEAST_BYTES_S), 0.0, 0.0
        for job in jobs:
            every = job.every_s or (PACE_ASSUMED_S if self._slack else 0.0)
            if not every or not job.saved_at:
                return Order(0, "nobody knows yet when the next checkpoint will be saved")
            longer = min(job.size / known if known else 0.0, (PACE_LAST_SHARE - PACE_SHARE) * every)
            usual_s = min(PACE_SHARE * every, self._most_s)
            left_s = job.saved_at + usual_s + self._slack * longer - now
            if left_s <= 0:
                return Order(0, f"{job.id} is late: it was saved {now - job.saved_at:.0f} s ago")
            total += job.left
            rate = max(rate, total / left_s)
        if sum(job.size for job in jobs) <= PACE_SMALL_BYTES:
            return Order(0, "there is little to send")
        if known and rate >= (PACE_FULL_SHARE if self._decided.bytes_per_s else PACE_AGAIN_SHARE) * known:
            asked = f"{rate / 1e6:.0f} of the {known / 1e6:.0f} MB/s that the store takes"
            return Order(0, f"a save every {every:.0f} s asks for {asked}")
        why = f"it may take {usual_s:.0f} s, as one is saved every {every:.0f} s"
        return Order(int(rate), f"{why}, and longer, as {self._slack_why}" if self._slack else why)

    def _listen(self, now: float) -> None:
        """Take more or less of the additional time."""
        felt = self.slowdown.look(now)
        if felt is None:
            return
        if felt:
            self._slack_why = self.slowdown.why
        if felt and self._slack == 1.0 and not self._is_conflict_said:
            self._is_conflict_said = True
            self._notices.append(
                f"Uploads are felt: {self._slack_why}, and the interval between saves leaves them no more time. Save "
                "less often, or allow a higher max_slowdown"
            )
        slack = min(max(self._slack + (_SLACK_STEP if felt else -_SLACK_STEP), 0.0), 1.0)
        if slack != self._slack:
            self._slack = slack
            self.slowdown.begin_anew()

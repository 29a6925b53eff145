"""What would be lost now: the work since the newest checkpoint that is in the store, if the machine is lost; or since
the newest that lies on this disk, if only the task's process ends.

Work counts from the moment in which a checkpoint's capture *began*, and only a checkpoint that a retry would load by
itself counts. A collective one counts when all of it is there. So what is said here may be more than what would be
lost, and is not less, but for what a watched trainer does while it writes a file. Time is the kernel's, since the
machine's boot: nobody sets that clock, it goes on while the machine is suspended, and an agent that is started again
goes by the same one (``spool/recovery.py``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .. import layout
from ..config import EXPOSURE_UPLOADS, EXPOSURE_WRITE_S
from ..spool.journal import UPLOADED
from ..spool.records import Admitted
from ..spool.recovery import Point, Recovery
from ..system.clock import Clock, Moment, moment
from .queue import Queue


class Loss(NamedTuple):
    """What would be lost.

    Parameters
    ----------
    machine_s : float or None
        Seconds of work, if this machine is lost now; None: nobody has said when the attempt began.
    process_s : float or None
        The same if only the task's process ends, and a retry begins on this machine.
    by_hand_s : float or None
        As ``machine_s`` for somebody who loads by hand: checkpoints with ``latest=False`` count as well.
    saves : int
        How many saves are only on this disk.
    """

    machine_s: float | None
    process_s: float | None
    by_hand_s: float | None
    saves: int

    def words(self) -> str:
        """For people."""
        if self.machine_s is None:
            return _saves_words(self.saves)
        lost = f"the work of the last {self.machine_s:.0f} s would be lost with this machine"
        is_by_hand = self.by_hand_s is not None and self.by_hand_s < self.machine_s
        why = ", as a retry does not load by itself what is saved with latest=False" if is_by_hand else ""
        what = f"; {_saves_words(self.saves)}" if self.saves else "" if is_by_hand else "; nothing was saved since"
        return f"{lost}{why}{what}"


class Exposure:
    """Follows one spool's checkpoints; decides nothing, and waits for nothing.

    Parameters
    ----------
    recovery : Recovery
        What an earlier agent has written down; ``has_news`` says when it is to be written anew.
    most_s : float
        The most seconds of work that may be lost; 0: nobody cares.
    """

    def __init__(self, recovery: Recovery, clock: Clock, most_s: float = 0.0) -> None:
        self.recovery, self._clock, self._most_s = recovery, clock, most_s
        self._is_changed = False
        self._written = self._committed = -math.inf

    # -- what happens --------------------------------------------------------------------------------------------------

    def begin(self, attempt: int, began: Moment | None, waiting: Iterable[Admitted]) -> None:
        """An owner says which attempt runs, and when it began; each time that it connects.

        What the attempt has loaded is lost with the machine as well, where it is not in the store yet: it is the newest
        of those that are ``waiting``.
        """
        known = self.recovery
        if attempt == known.attempt and known.began is not None and began in (None, known.began):
            return
        known.attempt, known.began, known.saved = attempt, began or moment(self._clock), None
        known.has_latest = False
        waiting = list(waiting)
        for point, items in ((known.any, waiting), (known.latest, _latest(waiting))):
            point.resumed = max((item.order for item in items), default=(-1, -1))
            if point.resumed <= point.reached or point.since is None:
                point.since = known.began
        self._is_changed = True

    def saved(self, item: Admitted) -> None:
        """A checkpoint was admitted."""
        known, is_latest = self.recovery, layout.is_latest(item.reference)
        if item.order[0] == known.attempt and (is_latest or not known.has_latest):
            # One that a retry does not load says nothing once there is one that it does.
            is_first = is_latest and not known.has_latest
            known.saved = (
                item.captured if is_first or known.saved is None else self._younger(item.captured, known.saved)
            )
            known.has_latest |= is_latest
        self._is_changed = True

    def committed(self, item: Admitted, bytes_per_s: float = 0.0) -> None:
        """A checkpoint is in the store, and visible there.

        Parameters
        ----------
        bytes_per_s : float
            What the store takes at full speed; 0: that is not known.
        """
        known, now = self.recovery, moment(self._clock)
        for point in (known.any, known.latest) if layout.is_latest(item.reference) else (known.any,):
            if item.order > point.reached:
                point.reached, point.since = item.order, self._since(point, item)
        # What it took, without the time in which those before it had their turn, and as if nothing had slowed it down.
        at_full_speed = item.size / bytes_per_s if bytes_per_s > 0 else math.inf
        took = min(item.captured.age_s(now), self._clock.monotonic() - self._committed, at_full_speed)
        known.upload_s = [*known.upload_s, took][-EXPOSURE_UPLOADS:]
        self._committed = self._clock.monotonic()
        self._is_changed = True

    def hear_of_ends(self, sources: Collection[str]) -> list[str]:
        """These say now that the machine will be taken away. Returns those that have not said it before."""
        ends = self.recovery.ends
        if ends.keys() == set(sources):
            return []
        self.recovery.ends = {who: ends.get(who) or moment(self._clock) for who in sources}
        self._is_changed, self._written = True, -math.inf
        return [who for who in sources if who not in ends]

    def see_uploads(self, *, are_on_their_way: bool) -> None:
        """Something is sent or committed now, and nothing holds it up."""
        self._is_changed |= self.recovery.is_on_its_way != are_on_their_way
        self.recovery.is_on_its_way = are_on_their_way

    @property
    def has_news(self) -> bool:
        """Whether it is time to write down what has changed."""
        return self._is_changed and self._clock.monotonic() - self._written >= EXPOSURE_WRITE_S

    def is_written(self) -> None:
        """It was written down."""
        self._is_changed, self._written = False, self._clock.monotonic()

    def is_missing(self) -> None:
        """Something has removed what was written down."""
        self._is_changed = True

    # -- what it comes to ----------------------------------------------------------------------------------------------

    def loss(self, waiting: Iterable[Admitted]) -> Loss:
        """What would be lost now, with what is ``waiting``: all that is on this disk, and not in the store."""
        known, now, waiting = self.recovery, moment(self._clock), list(waiting)
        point, saves = known.latest, len({item.order for item in waiting})
        if point.since is None or known.any.since is None:
            return Loss(None, None, None, saves)
        machine_s = point.since.age_s(now)
        by_hand_s = min(known.any.since.age_s(now), machine_s)
        newest = max(_whole(_latest(waiting)), key=lambda item: item.order, default=None)
        if newest is None or newest.order <= point.reached:
            return Loss(machine_s, machine_s, by_hand_s, saves)
        return Loss(machine_s, min(self._since(point, newest).age_s(now), machine_s), by_hand_s, saves)

    def _since(self, point: Point, item: Admitted) -> Moment:
        """Since when work would be lost if a retry began with this one. What was done before this attempt began, and is
        not in what it has loaded, is lost already.
        """
        began = self.recovery.began
        return item.captured if began is None or item.order < point.resumed else self._younger(item.captured, began)

    def _younger(self, one: Moment, other: Moment) -> Moment:
        now = moment(self._clock)
        return one if one.age_s(now) <= other.age_s(now) else other

    def warning(self, loss: Loss, next_one: str) -> str:
        """What is to be said now of ``max_exposure``: once that it is exceeded, once that it is kept again; else empty.

        Parameters
        ----------
        next_one : str
            When the next checkpoint will be in the store, in words.
        """
        if not self._most_s or loss.machine_s is None or self.recovery.is_exceeded == (loss.machine_s > self._most_s):
            return ""
        self.recovery.is_exceeded = loss.machine_s > self._most_s
        self._is_changed = True
        if not self.recovery.is_exceeded:
            return f"max_exposure is kept again: of the last {loss.machine_s:.0f} s the work would be lost now"
        return f"max_exposure={self._most_s:g} s is exceeded: {loss.words()}{f'; {next_one}' if loss.saves else ''}"


def until_durable(queue: Queue, bytes_per_s: float, trouble: str) -> tuple[float | None, str]:
    """In how many seconds the next checkpoint is expected to be in the store; None, and why that is not known.

    Parameters
    ----------
    bytes_per_s : float
        What the store takes; 0: that is not known.
    trouble : str
        Why nothing is uploaded at all; empty: nothing is known against it.
    """
    first = next((job for job in queue.in_line() if not job.passed), None) or next(queue.in_line(), None)
    if first is None:
        waiting = queue.gathering()
        return None, waiting[0].why or "other ranks are not as far" if waiting else "nothing waits for the store"
    if trouble or first.why:
        return None, trouble or f"{first.id}: {first.why}"
    if first.shard:
        return None, "other ranks save parts of it as well"
    if first.state == UPLOADED:
        return 0.0, ""
    if bytes_per_s <= 0:
        return None, "nothing was sent yet, so nobody knows how fast the store is"
    # Those that are under way share the line, until each of them is done.
    beside = sum(min(job.left, first.left) for job in queue.uploading if job is not first)
    return (first.left + beside) / bytes_per_s, ""


def next_words(seconds: float | None, why: str) -> str:
    """The same for people."""
    if seconds is None:
        return f"when the next one is in the store is not known: {why}"
    return f"the next one is in the store in about {math.ceil(seconds)} s"


def _saves_words(count: int) -> str:
    return f"{count} save{'s are' if count != 1 else ' is'} only on this disk"


def _latest(items: Iterable[Admitted]) -> list[Admitted]:
    return [item for item in items if layout.is_latest(item.reference)]


def _whole(items: Iterable[Admitted]) -> list[Admitted]:
    """Those of which all is on this disk: of collective ones, the parts of all ranks."""
    items = list(items)
    parts: dict[tuple[int, int], set[int]] = {}
    for item in items:
        if layout.is_shard(item.reference):
            parts.setdefault(item.order, set()).add(item.reference["rank"])
    return [
        item for item in items
        if item.order not in parts or len(parts[item.order]) >= item.reference.get("world", math.inf)
    ]  # fmt: skip

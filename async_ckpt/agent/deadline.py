"""What to bring into the store when this machine will be taken away: at a notice (``spot_notice.py``), a SIGTERM, or
when the task says so.

The newest checkpoint that is expected to be in the store in time goes first, and only small ones go beside it. One that
fails, pauses, or gets nowhere gives way to the next newest. It is tried again when nothing better is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config import LAST_CALL_LEAST_S, LAST_CALL_MOST_S, NOTICE_IGNORED_S, NOTICE_NEAR_S, PIECE_BYTES, Config
from ..ipc.protocol import Message
from ..spool.journal import ADMITTED, UPLOADED, UPLOADING, Journal, order
from ..system.clock import Clock
from .child import Child
from .job import Job, TryProgress
from .queue import Queue
from .spot_notice import SpotNotice
from .throughput import Throughput

#: Plans use this share of the time that is left, because rates vary and a commit takes several round trips.
_SHARE = 0.8

#: A checkpoint that brings nothing new for this share of the time left gives way to another one.
_PATIENCE_SHARE = 0.1
#: A checkpoint that is sent at less than this share of the planned rate may be slow for a reason of its own.
_SLOW_SHARE = 0.25
#: An upload that has only begun is given this many times as long. So is one of which everything is sent and only the
#: answer is missing, as it would have to be sent again.
_LONGER = 2
#: On a slow line an upload is given the time of so many pieces (but no longer than that), as bytes are counted by the
#: piece.
_PIECES = 2

#: A checkpoint that is smaller than this share of the first one, or than so many bytes, goes beside it: its upload is
#: mostly round trips.
_BESIDE_SHARE, _BESIDE_BYTES = 1 / 8, 1 << 20

#: How many of those that wait are named, and how often, at most, it is said that another one goes first.
_MOST_NAMED, _MOST_TOLD = 20, 50

_NOTICE = "the notice of the machine's end"


def plan(newest_first: Sequence[Job], bytes_per_s: float, seconds: float, most: int) -> list[Job]:
    """What to upload now: the newest checkpoint that is expected to be in the store in time, or else the quickest.
    Those that have given way before come after all others. Beside the first go those that are small, are expected in
    time as well, and have not given way more often.

    Parameters
    ----------
    bytes_per_s : float
        What the store takes. 0: that is not known, and the newest goes first.
    seconds : float
        Until the end.
    most : int
        How many, at most.
    """
    jobs = sorted(
        (job for job in newest_first if job.state != UPLOADED and not job.is_paused), key=lambda job: job.strikes
    )
    if not jobs:
        return []
    first = next((job for job in jobs if not bytes_per_s or _fits(job, bytes_per_s, seconds)), None)
    if first is None:
        return [min(jobs, key=lambda job: (job.strikes, job.left))]
    chosen, total = [first], first.left
    for job in sorted(jobs, key=lambda job: job.state != UPLOADING):  # What is under way goes on.
        if len(chosen) >= most:
            break
        budget = bytes_per_s * seconds * (1.0 if job.state == UPLOADING else _SHARE)
        is_small = job.left <= max(_BESIDE_BYTES, first.left * _BESIDE_SHARE)
        is_tried = job.strikes > first.strikes
        if job is not first and is_small and not is_tried and total + job.left <= budget:
            chosen.append(job)
            total += job.left
    return chosen


def _fits(job: Job, bytes_per_s: float, seconds: float) -> bool:
    """Whether it is expected to be there in time. One that is under way is stopped only where it surely is not."""
    return job.left <= bytes_per_s * seconds * (1.0 if job.state == UPLOADING else _SHARE)


def _named(jobs: Sequence[Job]) -> list[str]:
    """Their ids, the newest first; not of all, if they are many."""
    return sorted((job.id for job in jobs), key=order, reverse=True)[:_MOST_NAMED]


def _words(source: str, seconds: float) -> str:
    return f"{source}: {seconds:.0f} s are left"


class LastCall:
    """Puts those first that can still be stored, once the end of the machine is known; the others wait for time that is
    left over. An end that is far away changes only the order.

    Parameters
    ----------
    tell : callable
        Gets the push for those who are to hear what is given up.
    """

    def __init__(
        self, queue: Queue, journal: Journal, throughput: Throughput, uploader: Child, config: Config,
        tell: Callable[[Message], None], clock: Clock,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._queue, self._throughput, self._uploader, self._tell = queue, throughput, uploader, tell
        self._config, self._journal = config, journal
        self._notice = SpotNotice(config.spot_notice_file, config.termination_grace_s, clock)
        self._terminated = False
        #: When the end will be (monotonic seconds), by who says so.
        self._ends: dict[str, float] = {}
        #: The rate with which was planned when the first was chosen, and whether the last one turned out to be slower.
        self._planned = 0.0
        self._was_slow = False
        #: What goes first, by id.
        self.first: str | None = None
        #: Whether the queue is told in which order to go.
        self._is_on = False
        #: Whether the end was near at the last tick.
        self._was_near = False
        #: Who has said that the end comes, if the task was not told of it yet; how often it was told what goes first.
        self._unsaid = ""
        self._told = 0

    def terminate(self) -> None:
        """From a signal handler: everything on this machine is told to end."""
        self._terminated = True

    def tick(self, now: float) -> None:
        """Look for news of the end, whether it has passed (monotonic seconds), and whether anything gets nowhere."""
        if self._terminated:
            self._terminated = False
            self.hear(self._config.termination_grace_s, "SIGTERM")
        left = self._notice.seconds_left()
        if left is not None:
            self._ends.pop(_NOTICE, None)  # A later word of the same counts.
            self.hear(left, _NOTICE)
        elif self._notice.is_withdrawn:
            self._ends.pop(_NOTICE, None)
        self._ends = {source: until for source, until in self._ends.items() if now < until}
        if not self._ends:
            if self._is_on:  # We live: all goes on as if nothing had been.
                self._is_on, self._was_slow, self.first = False, False, None
                self._queue.relax()
            return
        was_near, self._was_near = self._was_near, self.is_near
        if self._was_near:
            if not was_near:  # How each got on before does not tell how it gets on now that others are in its way.
                for job in (*self._queue.uploading, *self._queue.committing):
                    job.progress = TryProgress()
            self._look_for_stalls(now)
        self.choose_again()

    def hear(self, seconds: float, source: str) -> None:
        """So many seconds are left. The earliest end counts; one that is too far for any machine is none."""
        if seconds > NOTICE_IGNORED_S:
            days = seconds / 86400
            why = f"{source}: {days:,.0f} days are left, which is no end of a machine; nothing is done about it"
            self._tell({"push": "notice", "why": why})
            return
        now = self._clock.monotonic()
        until, earliest = now + seconds, self._until
        self._ends[source] = min(until, self._ends.get(source, until))
        if earliest is not None and until >= earliest - 1:
            return
        self._unsaid, self._told = source, 0
        if not self.is_near:
            how = "the newest checkpoints go first, and the others beside them while there is time"
            self._tell({"push": "notice", "why": f"{_words(source, seconds)}; {how}"})
        self.choose_again()

    @property
    def sources(self) -> tuple[str, ...]:
        """Who says that the end comes, as long as it has not passed."""
        return tuple(self._ends)

    @property
    def _until(self) -> float | None:
        return min(self._ends.values(), default=None)

    @property
    def is_known(self) -> bool:
        """Whether an end is known, however far."""
        return bool(self._ends)

    @property
    def is_near(self) -> bool:
        """Whether an end is known that has not passed, and is not far."""
        return self._until is not None and self._until - self._clock.monotonic() <= NOTICE_NEAR_S

    def stumbled(self, identities: Sequence[str], why: str) -> None:
        """Something failed, and may pass: others go before it."""
        if self.is_near:
            for identity in identities:
                self._queue.jobs[identity].strikes += 1
            self._give_way(why)

    def choose_again(self, why: str = "") -> None:
        """Something was saved, is in the store, or will not be: is another one to go first now? With ``why``: say so,
        and what waits.
        """
        if self._until is None:
            return
        self._is_on = True
        jobs = self._queue.newest_first()
        preferred = [job.id for job in sorted(jobs, key=lambda job: job.strikes)]
        if not self.is_near:
            self._queue.hurry(preferred, preferred)
            return
        left = max(self._until - self._clock.monotonic(), 0.0)
        chosen = plan(jobs, self._throughput.known, left, self._config.max_uploads)
        ids = [job.id for job in chosen]
        for job in self._queue.uploading:
            if job.id not in ids:
                self._stop(job)
        self._queue.hurry(preferred, ids)
        first, self.first = self.first, ids[0] if ids else None
        if first != self.first:
            self._planned = self._throughput.known
        waiting = [job for job in jobs if job.id not in ids and job.state != UPLOADED]
        # How much is left now: an end that was far when it became known is near now.
        why = _words(self._unsaid, left) if self._unsaid else why if first != self.first else ""
        self._unsaid = ""
        if not why or not jobs:
            return
        under_way = [job for job in jobs if job.id in ids or job.state == UPLOADED]
        if self.first is not None and waiting:
            self._say(why, [job for job in under_way if job.id != self.first], waiting)
            return
        said = [f"{', '.join(_named(under_way))} may still be stored"] if under_way else []
        if waiting:  # All of them pause.
            said.append(f"held up, and tried again: {', '.join(_named(waiting))}")
        self._tell({"push": "notice", "why": f"{why}: {'; '.join(said)}"})

    def _say(self, why: str, beside: Sequence[Job], waiting: Sequence[Job]) -> None:
        self._told += 1
        if self._told <= _MOST_TOLD:
            told = {"id": self.first, "beside": _named(beside), "ids": _named(waiting), "count": len(waiting)}
            self._tell({"push": "given up", **told, "why": why})

    def _stop(self, job: Job) -> None:
        self._uploader.tell({"op": "pause", "id": job.id})
        self._queue.give_way(job.id)
        if job.state == ADMITTED:
            job.sent = job.stored_bytes(self._journal.of(job.id))

    def _look_for_stalls(self, now: float) -> None:
        """What shows nothing new gives way, be it an upload or a commit; where it is alone, it is begun anew."""
        under_way = self._queue.uploading
        batch = self._queue.committing[:1]
        if self._until is None or not self._uploader.is_awake:
            return
        patience = min(max(_PATIENCE_SHARE * (self._until - now), LAST_CALL_LEAST_S), LAST_CALL_MOST_S)
        rate = self._throughput.known
        pieces_s = _PIECES * PIECE_BYTES * len(under_way) / rate if rate else 0.0
        others = [job for job in self._queue.newest_first() if not job.is_paused]
        for job in under_way:
            alone = all(other is job or other.state == UPLOADED for other in others)
            # Longer each time: where all are slow to answer, none would ever be done.
            silent_s = job.progress.look(job.tries, job.sent, now)
            is_in_midst = job.left > 0 and job.progress.has_moved
            limit = min(max(patience, pieces_s), patience * _LONGER) if is_in_midst else patience * _LONGER
            if silent_s > limit * 2.0 ** (job.strikes + alone):
                self._strike(job, "gets nowhere")
            elif not alone and self._is_too_slow(job, others, patience, now):
                self._strike(job, "is too slow for the time there is")
        for job in batch:
            rivals = [other for other in others if other.is_ready and other not in self._queue.committing]
            if any(other.strikes < job.strikes for other in rivals):
                self._stop(job)  # It was only tried again while there was nothing better.
                continue
            alone = not rivals
            limit = patience * _LONGER * 2.0 ** (job.strikes + alone)
            if job.progress.look(job.tries, job.sent, now) > limit:
                self._strike(job, "cannot be committed now")

    def _is_too_slow(self, job: Job, others: Sequence[Job], patience: float, now: float) -> bool:
        """Whether it will not be there in time, and another one would be, as far as can be told."""
        rate, left = self._throughput.known, (self._until or now) - now
        rivals = [
            other for other in others
            if other.state not in (UPLOADED, UPLOADING) and other.strikes <= job.strikes
        ]  # fmt: skip
        own = job.progress.bytes_per_s(now) * len(self._queue.uploading)  # They share what there is.
        is_slow = (
            job.id == self.first
            and job.progress.has_moved
            and job.progress.lasted_s(now) > patience * _LONGER
            and own < self._planned * _SLOW_SHARE
            and job.left > own * left
        )
        if is_slow and rivals:
            # Perhaps it is not the store: the next one is planned as this one was, unless that is slow as well.
            if not self._was_slow:
                self._throughput.assume(self._planned)
            self._was_slow = True
            return True
        return rate > 0 and not _fits(job, rate, left) and any(_fits(other, rate, left) for other in rivals)

    def _strike(self, job: Job, why: str) -> None:
        job.strikes += 1
        self._stop(job)
        self._give_way(f"{job.id} {why}")

    def _give_way(self, why: str) -> None:
        """Choose again, and say why, also where what goes first is still the same."""
        told = self._told
        self.choose_again(why)
        if told == self._told < _MOST_TOLD:
            self._told += 1
            self._tell({"push": "notice", "why": f"{why}, and gives way to others, if there are any"})

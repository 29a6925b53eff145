"""What to do next, decided without clocks, files or sockets.

Uploads run side by side up to a limit, oldest first. Commits happen in the order of admission (attempt, version): a
checkpoint is committed only when every older one has ended. Those that are uploaded and next to each other at the head
of the queue are committed as one *batch*; there is one batch at a time. One that failed no longer holds up others.

A *shard*, a rank's part of a collective checkpoint, leaves the line once it is uploaded: it is *gathered*, as long as
that takes, and holds up nobody.

One that fails again and again, or hangs, while others do not, is *passed by*: newer ones are committed before it. One
with which in hand uploaders die is a *suspect*: it is tried when nothing else is left to do, and alone, so that no
other is taken for the culprit. When time is short (``hurry``) nobody waits for older ones: what goes is said from
outside.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..spool.journal import ADMITTED, COMMITTED, FAILED, FINAL, UPLOADED, UPLOADING
from ..spool.records import Admitted
from .job import Job, Place

#: Most checkpoints in a batch: it shares the round trips of all but its commits, and is done again after a death.
MAX_BATCH = 16


class Action(NamedTuple):
    """``kind`` is ``"upload"`` or ``"gather"``, of one checkpoint, or ``"commit"``, of a batch, in this order."""

    kind: str
    ids: tuple[str, ...]


class Queue:
    """Jobs by id.

    Parameters
    ----------
    max_uploads : int
        Uploads side by side.
    """

    def __init__(self, max_uploads: int) -> None:
        self._max_uploads = max_uploads
        self.jobs: dict[str, Job] = {}
        self._open: dict[str, Job] = {}
        self._failed: dict[str, Job] = {}
        self._line: list[Place] = []  # Of the open ones, in order.
        self._uploading: dict[str, Job] = {}
        self._gatherable: dict[str, Job] = {}
        self._batch: list[Job] = []
        self._paused: dict[str, Job] = {}
        #: When time is short: what is committed, in this order, and what may be uploaded.
        self._preferred: Sequence[str] | None = None
        self._allowed: Sequence[str] = ()
        self._newest_committed = (-1, -1)
        #: Bytes of all that is open, sent or not.
        self.open_bytes = 0
        self.committed = 0
        self.last_committed: str | None = None

    def add(
        self, identity: str, order: tuple[int, int], size: int, *, uploaded: bool = False, shard: bool = False
    ) -> Job:
        """Take in a checkpoint; ``uploaded`` if only its commit is left."""
        state = UPLOADED if uploaded else ADMITTED
        job = self.jobs[identity] = Job(identity, order, size, state, stored=uploaded, shard=shard)
        self._enter(job)
        return job

    def _enter(self, job: Job) -> None:
        self._open[job.id] = job
        self.open_bytes += job.size
        if job.shard and job.state == UPLOADED:
            self._gatherable[job.id] = job
            return
        bisect.insort(self._line, job.place)

    def _leave_line(self, job: Job) -> None:
        at = bisect.bisect_left(self._line, job.place)
        if at < len(self._line) and self._line[at] == job.place:
            del self._line[at]

    def next_actions(self) -> list[Action]:
        """What can be started now; each action is handed out once, until ``restart`` takes it back."""
        actions: list[Action] = []
        if self._preferred is None and any(job.is_suspect for job in (*self._uploading.values(), *self._batch)):
            return actions  # A suspect is tried alone.
        # An older one may have been admitted since the commits that run began: it waits for their end.
        if not self._batch:
            self._batch = self._next_batch()
            for job in self._batch:
                job.tries += 1
            if self._batch:
                actions.append(Action("commit", tuple(job.id for job in self._batch)))
        gatherable, self._gatherable = self._gatherable, {}
        actions += [Action("gather", (identity,)) for identity in gatherable]
        while len(self._uploading) < self._max_uploads and (startable := self._next_upload()) is not None:
            actions.append(self._begin(startable))
        if not actions and not self._uploading and not self._batch and self._preferred is None:
            actions += self._next_suspect()
        return actions

    def _begin(self, job: Job) -> Action:
        job.state = UPLOADING
        job.tries += 1
        self._uploading[job.id] = job
        return Action("upload", (job.id,))

    def _next_suspect(self) -> list[Action]:
        suspects = (job for job in self.in_line() if job.is_suspect and not job.is_paused)
        able = (job for job in suspects if job.state in (ADMITTED, UPLOADED))
        job = min(able, key=lambda job: (job.deaths, job.place), default=None)
        if job is None:
            return []
        if job.state == ADMITTED:
            return [self._begin(job)]
        job.tries += 1
        self._batch = [job]
        return [Action("commit", (job.id,))]

    def blame(self, identity: str, deaths: int) -> None:
        """Note how often in a row agents or uploaders have died with a checkpoint in hand."""
        if job := self._open.get(identity):
            job.deaths = deaths

    def _next_batch(self) -> list[Job]:
        if self._preferred is None:
            waited_for = (job for job in self.in_line() if not job.is_suspect and (job.is_ready or not job.passed))
            return list(itertools.islice(itertools.takewhile(lambda job: job.is_ready, waited_for), MAX_BATCH))
        # (A shard that is uploaded is not among them: alone it is no checkpoint.)
        ready = [job for identity in self._preferred if (job := self._open.get(identity)) and job.is_ready]
        # The newest alone, as nothing should come between it and its commit.
        return ready[: 1 if ready and ready[0].order > self._newest_committed else MAX_BATCH]

    def _next_upload(self) -> Job | None:
        if self._preferred is not None:
            jobs = (job for identity in self._allowed if (job := self._open.get(identity)))
        else:
            jobs = (job for job in self.in_line() if not job.is_suspect)
        return next((job for job in jobs if job.state == ADMITTED and not job.is_paused), None)

    def uploaded(self, identity: str) -> None:
        """All objects of a checkpoint are in the store."""
        job = self._open.get(identity)
        if job is None:
            return
        job.state, job.stored, job.passed, job.deaths = UPLOADED, True, False, 0
        self._uploading.pop(identity, None)
        if job.shard:
            self._leave_line(job)
            self._gatherable[identity] = job

    def end(self, identity: str, state: str, why: str = "") -> None:
        """A checkpoint reached one of the final states."""
        assert state in FINAL, state
        job = self._open.pop(identity, None)
        if job is None:
            return
        self.open_bytes -= job.size
        self._leave_line(job)
        for containers in (self._uploading, self._gatherable, self._paused):
            containers.pop(identity, None)
        if state == COMMITTED:
            self._newest_committed = max(self._newest_committed, job.order)
            self.committed += 1
            self.last_committed = identity
            if job in self._batch:
                self._batch.remove(job)
        else:
            if state == FAILED:
                self._failed[identity] = job
            self._end_batch_at(job)
        job.state, job.why = state, why

    def _end_batch_at(self, job: Job) -> None:
        """A commit that comes to nothing ends its batch: those after it are handed out again."""
        if job in self._batch:
            self._batch = []

    def newest_first(self) -> list[Job]:
        """All that are open, without the shards that are uploaded."""
        return [self._open[identity] for _, identity in reversed(self._line)]

    def in_line(self) -> Iterator[Job]:
        """The same, oldest first."""
        return (self._open[identity] for _, identity in self._line)

    def to_upload(self) -> list[Job]:
        """What is on its way to the store, or can be, oldest first."""
        return [job for job in self.in_line() if job.state in (ADMITTED, UPLOADING) and not job.is_paused]

    @property
    def uploading(self) -> list[Job]:
        """What is on its way to the store."""
        return list(self._uploading.values())

    @property
    def committing(self) -> list[Job]:
        """The batch that is under way: what of it is not committed yet."""
        return list(self._batch)

    def hurry(self, preferred: Sequence[str], allowed: Sequence[str]) -> None:
        """Time is short: from now on commits are made in the order of ``preferred``, as soon as they can be, and
        nothing is begun but the uploads of ``allowed``, in its order.
        """
        self._preferred, self._allowed = preferred, allowed

    def relax(self) -> None:
        """There is time again: all goes on in the order of admission."""
        for job in (*self._open.values(), *self._failed.values()):
            job.strikes = 0
        self._preferred, self._allowed = None, ()

    def give_way(self, identity: str) -> None:
        """What was under way for a checkpoint was stopped; it is to be done again."""
        job = self._open.get(identity)
        if job is not None:
            self._end_batch_at(job)
            if self._uploading.pop(identity, None) is not None:
                self._start_over(job)

    def pass_by(self, identity: str) -> None:
        """Do not let newer ones wait for this one's commit."""
        job = self._open.get(identity)
        if job is not None:
            job.passed = True

    def dispensable(self) -> str | None:
        """The oldest checkpoint that may be dropped: it is not on its way to the store, is not the newest of its name,
        and has no parts of other ranks. None: there is none.
        """
        jobs = list(self.in_line())
        newest = {job.name: job for job in jobs}
        return next(
            (job.id for job in jobs if job.state == ADMITTED and not job.shard and newest[job.name] is not job), None
        )

    def restart(self) -> list[str]:
        """The uploader died: what was under way is to be done again. Returns its ids; of a batch, the oldest one's."""
        under_way = [*self._uploading, *[job.id for job in self._batch[:1]]]
        for job in self._uploading.values():
            self._start_over(job)
        self._uploading, self._batch = {}, []
        self._gatherable = {job.id: job for job in self.gathering() if not job.is_paused}
        return under_way

    def gathering(self) -> list[Job]:
        """Shards that are in the store, whose checkpoint is not committed."""
        return [job for job in self._open.values() if job.shard and job.state == UPLOADED]

    def gather_again(self, identity: str) -> None:
        """Hand out the gathering of a shard once more: how long it may last has changed."""
        job = self._open.get(identity)
        if job is not None and job.shard and job.is_ready:
            self._gatherable[identity] = job

    def _start_over(self, job: Job) -> None:
        job.state, job.sent = ADMITTED, 0

    def pause(self, identity: str, until: float = math.inf) -> None:
        """What was under way for a checkpoint came to nothing; it is to be done again, but not before ``until``
        (monotonic seconds), or ``resume``.
        """
        job = self._open.get(identity)
        if job is None:
            return
        self._end_batch_at(job)
        job.not_before, job.sent = until, 0
        self._paused[identity] = job
        if self._uploading.pop(identity, None) is not None:
            job.state = ADMITTED

    def resume(self, identity: str) -> None:
        """End the pause."""
        job = self._paused.pop(identity, None)
        if job is not None:
            job.not_before = 0.0
            self.gather_again(identity)

    def resume_due(self, now: float, most_s: float = math.inf) -> None:
        """End the pauses that are over (``now``: monotonic seconds). Those that have an end last no longer than another
        ``most_s`` seconds.
        """
        for job in list(self._paused.values()):
            if job.not_before < math.inf:
                job.not_before = min(job.not_before, now + most_s)
            if now >= job.not_before:
                self.resume(job.id)

    def retry(self, identity: str) -> None:
        """Take up a failed checkpoint again."""
        job = self._failed.pop(identity, None)
        if job is not None:
            job.state, job.why, job.sent = UPLOADED if job.stored else ADMITTED, "", 0
            job.passed, job.not_before, job.deaths = False, 0.0, 0
            job.gathered_since = {}
            job.store_answered()
            self._enter(job)

    @property
    def pending(self) -> int:
        return len(self._open)

    @property
    def pending_bytes(self) -> int:
        """Bytes not yet sent."""
        return sum(job.left for job in self._open.values())

    def failed(self) -> list[Job]:
        return list(self._failed.values())

    def with_snapshot(self) -> list[tuple[Job, Admitted]]:
        """All whose snapshot is still needed, each with its record: those that are open, and those that have failed and
        may be tried again.
        """
        jobs = (*self._open.values(), *self._failed.values())
        return [(job, job.item) for job in jobs if job.item is not None]

    def waiting(self) -> list[Admitted]:
        """Their records alone: all that is on this disk, and not in the store."""
        return [item for _, item in self.with_snapshot()]

"""The checkpoints of a spool: how each of them comes in, from the disk, and the one way in which it ends."""

from __future__ import annotations

import os
from collections import deque

from .. import layout
from ..capture.content import pack_path
from ..errors import IntegrityError, SpoolError
from ..ipc.protocol import Message
from ..spool.journal import (
    ADMITTED,
    COMMITTED,
    FAILED,
    FINAL,
    RELEASED,
    REMOVED,
    SUPERSEDED,
    UPLOADED,
    UPLOADING,
    is_id,
)
from ..spool.records import Admitted, torn_file
from ..system.clock import moment
from ..system.filesystems import kind_of, times_tell
from .backlog import is_short_of_disk, why_full
from .housekeeping import removed
from .job import Job
from .parts import Parts

#: How many failed checkpoints are named, and how many errors are remembered.
MAX_ERRORS = 20


class Checkpoints:
    """See the module's docstring."""

    def __init__(self, parts: Parts) -> None:
        self._spool, self._config, self._clock, self._queue = parts.spool, parts.config, parts.clock, parts.queue
        self._unreachable, self._journal, self._house = parts.unreachable, parts.journal, parts.house
        self._leases, self._remover, self._owners = parts.leases, parts.remover, parts.owners
        self._deaths, self._last_call = parts.deaths, parts.last_call
        self._exposure, self._throughput = parts.exposure, parts.throughput
        self._pace, self._card, self._retaining = parts.pace, parts.card, parts.retaining
        self._annotating = parts.annotating
        #: What went wrong last, for whoever asks for the status.
        self.errors: deque[str] = deque(maxlen=MAX_ERRORS)

    # -- in ------------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up what earlier agents and savers left on this disk."""
        # Listed before the records are read: a saver that ends in between has admitted what it captured.
        leftovers = self._spool.snapshots.leftovers()
        for item in self._spool.records.pending():
            leftovers -= {item.data, pack_path(item.data)}
            known = self._journal.of(item.id)
            if known.state in RELEASED:
                if known.state == COMMITTED:  # By an agent that died before it had written down what that means.
                    self._exposure.committed(item)
                self._remover.remove(item)
                continue
            if not known.uploaded and (why := self._unreachable.take(item)):
                self._owners.say(why)
                continue
            job = self._take_in(item, uploaded=known.uploaded)
            if not known.uploaded:
                self._fail_if_torn(item, "while nobody guarded the snapshot")
            if why := self._deaths.recovered(item.id):
                self.fail(job, why)
        self._sweep(leftovers)
        for identity, known in self._journal.checkpoints.items():
            if identity not in self._queue.jobs:
                job = self._queue.add(identity, (0, 0), 0)
                if known.state in RELEASED:
                    self._queue.end(identity, known.state, known.why)
                else:
                    self._queue.end(identity, FAILED, known.why or "its record vanished from the spool")
                job.let_go()

    def scan(self) -> None:
        """Find what was admitted without a doorbell, what is missing, and what can be reached again."""
        for item in self._unreachable.came_back():
            job = self._queue.jobs[item.id]
            job.item, job.why = item, ""
            self._fail_if_torn(item, "while nobody could look at it")
            self._queue.resume(item.id)
        for identity in self._unreachable.given_up(self._clock.monotonic()):
            self.fail(self._queue.jobs[identity], self._queue.jobs[identity].why)
        self.look_after_spool()
        for identity in self._spool.records.ids():
            if identity not in self._queue.jobs:
                found = self.take_in(identity)
                if found is not None and not self._spool.snapshots.saver_may_live(found):
                    # It did not come to hand over its leases.
                    self._fail_if_torn(found, "while nobody guarded the snapshot")

        if self._spool.snapshots.has_dead_buffers():
            leftovers = self._spool.snapshots.leftovers()
            for item in self._spool.records.pending():
                leftovers -= {item.data, pack_path(item.data)}
            self._sweep(leftovers)

    def _sweep(self, leftovers: set[str]) -> None:
        for why in self._spool.snapshots.sweep(leftovers):
            self._owners.say(why)

    def has_news(self) -> bool:
        """Whether something was admitted that ``scan`` has not found yet."""
        return any(identity not in self._queue.jobs for identity in self._spool.records.ids())

    def find(self, identity: str) -> Admitted | None:
        """The record of a checkpoint, which is admitted if it was not yet; None: it cannot be read, now at least."""
        job = self._queue.jobs.get(identity)
        if job is not None and job.item is not None:
            return job.item
        return None if self._unreachable.has(identity) else self.take_in(identity)

    def take_in(self, identity: str) -> Admitted | None:
        """Read a record, and queue its checkpoint unless that is known."""
        if not is_id(identity):
            return None
        try:
            item = self._spool.records.read(identity)
        except SpoolError as error:  # Not now; the next scan tries again.
            self.remember(str(error))
            return None
        except IntegrityError as error:
            self.fail(self._queue.add(identity, (0, 0), 0), str(error))
            return None
        if item is not None and identity not in self._queue.jobs:
            self._pace.saved(self._take_in(item), self._clock.monotonic())
            if self._config.on_backlog == "supersede":
                self._make_room(item)
            self._last_call.choose_again("a newer one was saved")
        return item

    def _take_in(self, item: Admitted, *, uploaded: bool = False) -> Job:
        shard = layout.is_shard(item.reference)
        job = self._queue.add(item.id, item.order, item.size, uploaded=uploaded, shard=shard)
        job.item = item
        self._exposure.saved(item)
        self._card.saved(job, item)
        if shard:
            self._outdate_before(item)
        return job

    def _outdate_before(self, newer: Admitted) -> None:
        """All ranks were started again: what one of them had not saved before that, it never will."""
        generation = layout.generation(newer.reference)
        for job, item in self._queue.with_snapshot() if generation else ():
            earlier = layout.is_shard(item.reference) and layout.generation(item.reference) < generation
            if earlier and item.order[0] == newer.order[0] and not job.outdated:
                job.outdated = True
                self._queue.gather_again(job.id)

    def _make_room(self, item: Admitted) -> None:
        """Drop what is the oldest, if the backlog was full before this one came."""
        folder = os.path.dirname(item.data)
        for _ in range(self._queue.pending):
            why = why_full(self._queue.pending - 1, self._queue.open_bytes - item.size, folder, self._config)
            victim = self._queue.dispensable() if why else None
            if victim is None:
                return
            self.supersede(self._queue.jobs[victim], f"superseded by {item.id}: {why}")
            if is_short_of_disk(folder, self._config):
                return  # What was dropped is given back in a moment.

    # -- whether it is still what was captured -------------------------------------------------------------------------

    def _fail_if_torn(self, item: Admitted, when: str) -> None:
        """Guard again what nobody may guard any more, and give it up if it is not what was captured."""
        stored = self._journal.of(item.id).files
        unguarded = self._leases.take_anew(item, stored)
        if torn := torn_file(item, stored):
            self.fail(self._queue.jobs[item.id], f"{torn} was written to, or removed, {when}", lost=True)
        elif unguarded and not times_tell(kind_of(item.data)) and not self._spool.snapshots.saver_may_live(item):
            why = f"{unguarded[0]} may have been written to {when}: somebody has it open for writing"
            self.fail(self._queue.jobs[item.id], why, lost=True)

    def fail_torn(self) -> None:
        """Give up what was written to before it could be copied away."""
        for identity, why in self._leases.lost():
            job = self._queue.jobs[identity]
            if job.state != UPLOADED:
                self.fail(job, why, lost=True)

    def look_after_spool(self) -> None:
        """Make again what something has removed from the spool; report what cannot be made again."""
        alive = self._queue.with_snapshot()
        if why := self._house.look([item for _, item in alive]):
            self._owners.say(why)
        self.fail_torn()  # Such files were removed by ourselves.
        for job, item in alive:
            is_waiting = job.state in (ADMITTED, UPLOADING) and (self._house.is_damaged or not os.path.isdir(item.data))
            if is_waiting and (why := removed(item, self._journal.of(job.id).files)):
                self.fail(job, why, lost=True)

    # -- out -----------------------------------------------------------------------------------------------------------

    def commit(self, job: Job, reference: Message) -> None:
        """It is in the store, and visible there."""
        if job.state == FAILED:  # It was given up in the very moment in which it was committed.
            self._queue.retry(job.id)
        if job.item is not None:
            self._exposure.committed(job.item, self._throughput.known)
            after_s = job.item.captured.age_s(moment(self._clock))
            self._owners.tell({"push": "committed", "id": job.id, "size": job.size, "after_s": round(after_s, 3)})
        self._end(job, COMMITTED, reference=reference)
        self._retaining.look_again()
        self._last_call.choose_again()

    def removed(self, job: Job) -> None:
        """The rules of the task have removed it from the store again."""
        job.state = REMOVED
        self._card.ended(job, REMOVED, "")
        self._journal.note({"id": job.id, "state": REMOVED})

    def supersede(self, job: Job, why: str) -> None:
        """It is dropped: a newer one is of more use."""
        self._end(job, SUPERSEDED, why)
        self._owners.tell({"push": "superseded", "id": job.id, "why": why})
        self._last_call.choose_again()

    def fail(self, job: Job, why: str, *, lost: bool = False, refused: bool = False) -> None:
        """It will not be committed.

        Parameters
        ----------
        lost : bool
            Its snapshot is of no use to anybody; else it stays for a later attempt.
        refused : bool
            The store will not take others either.
        """
        if job.state in FINAL:
            return
        self.remember(f"{job.id}: {why}")
        self._end(job, FAILED, why, is_needed=not lost)
        self._owners.tell({"push": "failed", "id": job.id, "why": why, "refused": refused})
        self._last_call.choose_again(f"{job.id} failed")

    def _end(self, job: Job, state: str, why: str = "", *, is_needed: bool = False, **fields: Message) -> None:
        """The one way out: the queue, the journal, the leases, and the disk unless the snapshot ``is_needed``."""
        self._queue.end(job.id, state, why)
        self._card.ended(job, state, why)
        self._annotating.look_again()
        is_written = self._journal.note({"id": job.id, "state": state, **({"why": why} if why else {}), **fields})
        # A loss that nobody could read of later keeps its record, so that the next agent finds and reports it. What is
        # committed or dropped is not lost, and gives the disk the room that the journal lacks.
        if job.item is None or is_needed or not (is_written or state in RELEASED):
            return
        self._leases.let_go(job.id)
        self._remover.remove(job.item)
        job.let_go()

    def remember(self, error: str) -> None:
        """Keep an error for whoever asks for the status. Called from other threads as well."""
        if error not in self.errors:
            self.errors.append(error)

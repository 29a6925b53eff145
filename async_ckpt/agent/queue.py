"""What to do next, decided without clocks, files or sockets.

Uploads run side by side up to a limit, oldest first. Commits happen in the order of admission (attempt, version): a
checkpoint is committed only when every older one has ended. Those that are uploaded and next to each other at the head
of the queue are committed as one *batch*; there is one batch at a time. One that failed no longer holds up others.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from ..spool.journal import ADMITTED, COMMITTED, FINAL, UPLOADED, UPLOADING

#: Most checkpoints in a batch: it shares the round trips of all but its commits, and is done again after a death.
MAX_BATCH = 16


class Action(NamedTuple):
    """``kind`` is ``"upload"``, of one checkpoint, or ``"commit"``, of a batch, oldest first."""

    kind: str
    ids: tuple[str, ...]


@dataclass
class Job:
    """One admitted checkpoint. ``sent`` counts the bytes of the current try; ``held``: it pauses."""

    id: str
    order: tuple[int, int]
    size: int
    state: str = ADMITTED
    why: str = ""
    sent: int = 0
    committing: bool = False
    held: bool = False


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
        self.committed = 0
        self.last_committed: str | None = None

    def admit(self, identity: str, order: tuple[int, int], size: int, *, uploaded: bool = False) -> Job:
        """Take in a checkpoint; ``uploaded`` if only its commit is left."""
        job = Job(identity, order, size, UPLOADED if uploaded else ADMITTED)
        self.jobs[identity] = self._open[identity] = job
        return job

    def next_actions(self) -> list[Action]:
        """What can be started now; each action is handed out once, until ``restart`` takes it back."""
        actions = []
        # Open jobs are few: those admitted and not yet ended.
        waiting = sorted(self._open.values(), key=lambda job: job.order)
        # An older one may have been admitted since the commits that run began: it waits for their end.
        if not any(job.committing for job in waiting):
            batch = list(itertools.takewhile(lambda job: job.state == UPLOADED and not job.held, waiting[:MAX_BATCH]))
            for job in batch:
                job.committing = True
            if batch:
                actions.append(Action("commit", tuple(job.id for job in batch)))
        running = sum(job.state == UPLOADING for job in waiting)
        for job in waiting:
            if running >= self._max_uploads:
                break
            if job.state == ADMITTED and not job.held:
                job.state = UPLOADING
                actions.append(Action("upload", (job.id,)))
                running += 1
        return actions

    def uploaded(self, identity: str) -> None:
        """All objects of a checkpoint are in the store."""
        if identity in self._open:
            self._open[identity].state = UPLOADED

    def end(self, identity: str, state: str, why: str = "") -> None:
        """A checkpoint reached one of the final states."""
        assert state in FINAL, state
        job = self._open.pop(identity, None)
        if job is None:
            return
        if state == COMMITTED:
            self.committed += 1
            self.last_committed = identity
            job.committing = False
        else:
            self._failed[identity] = job
            self._end_batch_at(job)
        job.state, job.why = state, why

    def _end_batch_at(self, job: Job) -> None:
        """A commit that comes to nothing ends its batch: those after it are handed out again."""
        if job.committing:
            for other in (job, *self._open.values()):
                other.committing = False

    def restart(self) -> list[str]:
        """The uploader died: what was under way is to be done again. Returns its ids; of a batch, the oldest one's."""
        under_way = [job for job in self._open.values() if job.state == UPLOADING]
        batch = [job for job in self._open.values() if job.committing]
        for job in under_way:
            job.state, job.sent = ADMITTED, 0
        for job in batch:
            job.committing = False
        return [job.id for job in [*under_way, *sorted(batch, key=lambda job: job.order)[:1]]]

    def hold(self, identity: str) -> None:
        """What was under way for a checkpoint came to nothing; it is to be done again, but not before ``resume``."""
        job = self._open.get(identity)
        if job is None:
            return
        self._end_batch_at(job)
        job.held, job.sent = True, 0
        if job.state == UPLOADING:
            job.state = ADMITTED

    def resume(self, identity: str) -> None:
        """End the pause."""
        if identity in self._open:
            self._open[identity].held = False

    def retry(self, identity: str) -> None:
        """Take up a failed checkpoint again."""
        job = self._failed.pop(identity, None)
        if job is not None:
            job.state, job.why, job.sent = ADMITTED, "", 0
            self._open[identity] = job

    @property
    def pending(self) -> int:
        return len(self._open)

    @property
    def pending_bytes(self) -> int:
        """Bytes not yet sent."""
        return sum(max(job.size - job.sent, 0) for job in self._open.values() if job.state != UPLOADED)

    def failed(self) -> list[Job]:
        return list(self._failed.values())

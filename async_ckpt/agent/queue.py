"""What to do next, decided without clocks, files or sockets.

Uploads run side by side up to a limit, oldest first. Commits happen one at a time and in the order of admission
(attempt, version): a checkpoint is committed only when every older one has ended. One that failed no longer holds up
others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..spool.journal import ADMITTED, COMMITTED, FAILED, FINAL, UPLOADED, UPLOADING

COMMITTING = "COMMITTING"


class Action(NamedTuple):
    """``kind`` is ``"upload"`` or ``"commit"``."""

    kind: str
    id: str


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
        # An older one may have been admitted since the commit that runs began: it waits for that.
        if (
            waiting
            and waiting[0].state == UPLOADED
            and not waiting[0].held
            and not any(job.committing for job in waiting)
        ):
            waiting[0].committing = True
            actions.append(Action("commit", waiting[0].id))
        running = sum(job.state == UPLOADING for job in waiting)
        for job in waiting:
            if running >= self._max_uploads:
                break
            if job.state == ADMITTED and not job.held:
                job.state = UPLOADING
                actions.append(Action("upload", job.id))
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
        job.state, job.why, job.committing = state, why, False
        if state == COMMITTED:
            self.committed += 1
            self.last_committed = identity

    def restart(self) -> list[str]:
        """The uploader died: what was under way is to be done again. Returns its ids."""
        under_way = [job for job in self._open.values() if job.committing or job.state == UPLOADING]
        for job in under_way:
            job.committing, job.sent = False, 0
            if job.state == UPLOADING:
                job.state = ADMITTED
        return [job.id for job in under_way]

    def hold(self, identity: str) -> None:
        """What was under way for a checkpoint came to nothing; it is to be done again, but not before ``resume``."""
        job = self._open.get(identity)
        if job is None:
            return
        job.committing, job.held, job.sent = False, True, 0
        if job.state == UPLOADING:
            job.state = ADMITTED

    def resume(self, identity: str) -> None:
        """End the pause."""
        if identity in self._open:
            self._open[identity].held = False

    def retry(self, identity: str) -> None:
        """Take up a failed checkpoint again."""
        job = self.jobs[identity]
        if job.state == FAILED:
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
        return [job for job in self.jobs.values() if job.state == FAILED]

"""Counts how often uploaders and agents have died with a checkpoint in hand: it may be what kills them. A file whose
reading ends in SIGBUS can do that, one that needs more memory than there is, or a bug.

Before each upload the journal says which checkpoint is taken in hand, and how often in a row that was; of a commit it
says so after each death. So an agent also knows what the one before it died with. If several were in hand, the death
counts for all of them. A checkpoint with too many deaths is a suspect: it is tried alone (``queue.py``), after longer
and longer pauses, and fails at last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..config import DEATHS_OF_AGENT, DEATHS_OF_UPLOADER, DEATHS_TO_SUSPECT, OUTAGE_FIRST_S, Config
from ..spool.journal import Journal
from .queue import Queue


class Deaths:
    """See the module's docstring.

    Parameters
    ----------
    log : str
        The file that says more.
    is_own : bool
        Whether this process may die of a suspect. The task's may not: it is not tried there.
    """

    def __init__(self, queue: Queue, journal: Journal, config: Config, log: str, *, is_own: bool) -> None:
        self._queue, self._journal, self._config, self._log = queue, journal, config, log
        self._most = DEATHS_OF_AGENT if is_own else DEATHS_TO_SUSPECT

    def recovered(self, identity: str) -> str:
        """An agent begins: has the last one died with this checkpoint in hand? Returns why it has failed; empty: it has
        not.
        """
        deaths = self._journal.of(identity).tries
        self._queue.blame(identity, deaths)
        if deaths < self._most:
            return ""
        return f"Whoever had it in hand, agent or uploader, died {deaths} times in a row; see {self._log}"

    def taken(self, identity: str) -> None:
        """An upload is about to be ordered."""
        job = self._queue.jobs[identity]
        job.stored_before = job.stored_bytes(self._journal.of(identity))
        self._journal.note({"id": identity, "tries": job.deaths + 1})

    def put_down(self, identity: str) -> None:
        """It is in nobody's hands any more, and nobody has died."""
        if self._journal.of(identity).tries:
            self._journal.note({"id": identity, "tries": 0})

    def died(self, identities: Iterable[str], now: float) -> Iterator[tuple[str, str]]:
        """An uploader died with these in hand (``now``: monotonic seconds). Yields what has failed, and why."""
        for identity in identities:
            job = self._queue.jobs[identity]
            # Then it is not to blame. Of one that is stored nothing can come any more but its commit.
            has_got_on = not job.stored and job.stored_bytes(self._journal.of(identity)) > job.stored_before
            self._queue.blame(identity, 0 if has_got_on else job.deaths + 1)
            if job.stored:  # What is uploaded was noted as it was taken.
                self._journal.note({"id": identity, "tries": job.deaths})
            if job.deaths >= DEATHS_OF_UPLOADER:
                alone = job.deaths - DEATHS_TO_SUSPECT
                why = f"The uploader died {job.deaths} times in a row with this checkpoint in hand, {alone} times alone"
                yield identity, f"{why}; see {self._log}"
            elif job.is_suspect:
                longer = 2 ** (job.deaths - DEATHS_TO_SUSPECT)
                self._queue.pause(identity, now + min(OUTAGE_FIRST_S * longer, self._config.agent_pause_s))

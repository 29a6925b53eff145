"""Checkpoints that may be what kills uploaders, or agents: a file whose reading ends in SIGBUS, one that needs more
memory than there is, a bug.

The journal says before each try which checkpoint is taken in hand, and how often in a row that was: so an agent knows
also what its predecessor died with. Who has more than one in hand blames all of them; what is blamed again is a suspect
and tried alone (``queue.py``), longer and longer pauses lie in between, and at last it fails, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..config import DEATHS_OF_AGENT, DEATHS_OF_UPLOADER, DEATHS_TO_SUSPECT, SUSPECT_FIRST_S, Config
from ..spool.journal import CheckpointState
from .queue import Queue


class Suspects:
    """Who is blamed.

    Parameters
    ----------
    known : dict
        The journal's progress.
    note : callable
        Writes a record of the journal.
    stored_bytes : callable
        How much of a checkpoint is in the store for good: where that has grown, nobody is to blame.
    log : str
        What says more.
    is_own : bool
        Whether this process may die of a suspect. The task's may not: it is not tried there.
    """

    def __init__(
        self, queue: Queue, known: dict[str, CheckpointState], note: Callable[[dict[str, Any]], bool],
        stored_bytes: Callable[[str], int], config: Config, log: str, *, is_own: bool,
    ) -> None:  # fmt: skip
        self._queue, self._known, self._note, self._stored_bytes = queue, known, note, stored_bytes
        self._config, self._log = config, log
        self._most = DEATHS_OF_AGENT if is_own else DEATHS_TO_SUSPECT

    def recovered(self, identity: str) -> str:
        """An agent begins: what has the last one died with? Returns why a checkpoint has failed; mostly nothing."""
        known = self._known.get(identity)
        deaths = known.tries if known is not None else 0
        self._queue.blame(identity, deaths)
        if deaths < self._most:
            return ""
        return f"Whoever had it in hand, agent or uploader, died {deaths} times in a row; see {self._log}"

    def taken(self, identity: str) -> None:
        """An upload is about to be ordered."""
        job = self._queue.jobs[identity]
        job.stored_before = self._stored_bytes(identity)
        self._note({"id": identity, "tries": job.deaths + 1})

    def put_down(self, identity: str) -> None:
        """It is in nobody's hands any more, and nobody has died."""
        known = self._known.get(identity)
        if known is not None and known.tries:
            self._note({"id": identity, "tries": 0})

    def died(self, identities: Iterable[str], now: float) -> Iterator[tuple[str, str]]:
        """An uploader died with these in hand (``now``: monotonic seconds). Yields what has failed, and why."""
        for identity in identities:
            job = self._queue.jobs[identity]
            has_got_on = self._stored_bytes(identity) > job.stored_before
            self._queue.blame(identity, 0 if has_got_on else job.deaths + 1)
            if job.deaths >= DEATHS_OF_UPLOADER:
                alone = job.deaths - DEATHS_TO_SUSPECT
                why = f"The uploader died {job.deaths} times in a row with this checkpoint in hand, {alone} times alone"
                yield identity, f"{why}; see {self._log}"
            elif job.is_suspect:
                longer = 2 ** (job.deaths - DEATHS_TO_SUSPECT)
                self._queue.pause(identity, now + min(SUSPECT_FIRST_S * longer, self._config.agent_pause_s))

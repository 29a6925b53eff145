"""Checkpoints that may be what kills uploaders, or agents: a file whose reading ends in SIGBUS, one that needs more
memory than there is, a bug.

The journal says before each try which checkpoint is taken in hand, and how often in a row that was: so an agent knows
also what its predecessor died with. Who has more than one in hand blames all of them; what is blamed again is a suspect
and tried alone (``queue.py``), longer and longer pauses lie in between, and at last it fails, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..config import DEATHS_OF_AGENT, DEATHS_OF_UPLOADER, DEATHS_TO_SUSPECT, Config
from ..spool.journal import Progress
from ..system.backoff import Backoff
from .queue import Queue

#: The first pause of a suspect, in seconds: what an uploader has died of may pass (memory that others had).
_FIRST_S = 2.0


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
        self, queue: Queue, known: dict[str, Progress], note: Callable[[dict[str, Any]], bool],
        stored_bytes: Callable[[str], int], config: Config, log: str, *, is_own: bool,
    ) -> None:  # fmt: skip
        self._queue, self._known, self._note, self._stored_bytes = queue, known, note, stored_bytes
        self._config, self._log = config, log
        self._most = DEATHS_OF_AGENT if is_own else DEATHS_TO_SUSPECT
        self._stored: dict[str, int] = {}
        self._pauses: dict[str, Backoff] = {}

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
        self._stored[identity] = self._stored_bytes(identity)
        self._note({"id": identity, "tries": self._queue.jobs[identity].deaths + 1})

    def put_down(self, identity: str) -> None:
        """It is in nobody's hands any more, and nobody has died."""
        known = self._known.get(identity)
        if known is not None and known.tries:
            self._note({"id": identity, "tries": 0})

    def died(self, identities: Iterable[str], now: float) -> Iterator[tuple[str, str]]:
        """An uploader died with these in hand (``now``: monotonic seconds). Yields what has failed, and why."""
        for identity in identities:
            job = self._queue.jobs[identity]
            has_got_on = self._stored_bytes(identity) > self._stored.get(identity, 0)
            self._queue.blame(identity, 0 if has_got_on else job.deaths + 1)
            if job.deaths >= DEATHS_OF_UPLOADER:
                alone = job.deaths - DEATHS_TO_SUSPECT
                why = f"The uploader died {job.deaths} times in a row with this checkpoint in hand, {alone} times alone"
                yield identity, f"{why}; see {self._log}"
            elif job.is_suspect:
                pause = self._pauses.setdefault(identity, Backoff(0, _FIRST_S, self._config.agent_pause_s))
                pause.failed(now)
                self._queue.hold(identity)

    def tick(self, now: float, *, hurry: bool) -> None:
        """End the pauses that are over; ``hurry``: all."""
        for identity, pause in list(self._pauses.items()):
            job = self._queue.jobs.get(identity)
            if job is None or not job.is_suspect:
                del self._pauses[identity]
            elif hurry or not pause.left_s(now):
                self._queue.resume(identity)

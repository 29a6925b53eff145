"""One checkpoint, from its admission to its end, and all that the agent knows of it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..config import DEATHS_TO_SUSPECT, OUTAGE_FIRST_S, OUTAGE_PAUSE_S
from ..spool.journal import ADMITTED, UPLOADED, CheckpointState
from ..spool.records import Admitted
from ..spool.unchanged import Fingerprint
from ..system.backoff import Backoff

#: ((attempt, version), id): what the queue is sorted by.
Place = tuple[tuple[int, int], str]


@dataclass(slots=True)
class TryProgress:
    """How one try gets on, as somebody sees it who looks now and then. Bytes that are taken back and sent again show
    nothing new. Times are monotonic seconds.
    """

    number: int = -1
    first: int = 0
    most: int = 0
    began: float = 0.0
    grew: float = 0.0

    def look(self, number: int, sent: int, now: float) -> float:
        """See how many bytes are sent. Returns for how many seconds nothing new was."""
        if number != self.number:
            self.number, self.first, self.most, self.began, self.grew = number, sent, sent, now, now
        elif sent > self.most:
            self.most, self.grew = sent, now
        return now - self.grew

    def lasted_s(self, now: float) -> float:
        """For how many seconds it has been looked at."""
        return now - self.began

    def bytes_per_s(self, now: float) -> float:
        """How fast it gets on, all in all."""
        return (self.most - self.first) / max(now - self.began, 1e-3)

    @property
    def has_moved(self) -> bool:
        """Whether anything new was sent since it was first looked at."""
        return self.most > self.first


def _no_outage() -> Backoff:
    return Backoff(0, OUTAGE_FIRST_S, OUTAGE_PAUSE_S)


#: What jobs that have ended share; nobody changes it any more.
_ENDED_PROGRESS, _ENDED_OUTAGE = TryProgress(), _no_outage()
_NOTHING: dict[Any, Any] = {}


@dataclass(slots=True)
class Job:
    """One admitted checkpoint.

    Parameters
    ----------
    order : tuple
        (attempt, version).
    size : int
        Bytes.
    why : str
        Why it has failed, or what holds it up.
    sent : int
        Bytes of the current try.
    tries : int
        How often an upload or a commit was begun.
    not_before : float
        It pauses, and is not tried before this moment (monotonic seconds); infinity: until somebody says so; 0: it does
        not pause.
    stored : bool
        All its objects are in the store, and only the commit is left, however often that has failed.
    shard : bool
        It is one rank's part of a collective checkpoint.
    outdated : bool
        It is a shard, and its ranks were started again since.
    passed : bool
        Newer checkpoints are committed without waiting for this one.
    deaths : int
        How often in a row a process has died that had it in hand, with nothing new of it stored in between.
    item : Admitted or None
        Its record. None: its file system does not answer, or its disk was given back.
    fingerprints : dict
        While it is uploaded: which of its files a later checkpoint may find unchanged, by path.
    gathered_since : dict
        Since when the other ranks are waited for, by whether that is for a moment only.
    is_said_held_up : bool
        The task was told that the store does not take it.
    all_sent, all_copied : int
        Bytes that were sent, or that the store has copied, of all tries.
    stored_before : int
        How many bytes of it were in the store when the current try began.
    strikes : int
        How often it has given way since the end of the machine is near.
    saved_at : float
        When the agent heard of it (monotonic seconds); 0: an earlier agent did.
    every_s : float
        In how many seconds the next of its name is likely to follow; 0: nobody knows.
    """

    id: str
    order: tuple[int, int]
    size: int
    state: str = ADMITTED
    why: str = ""
    sent: int = 0
    tries: int = 0
    not_before: float = 0.0
    stored: bool = False
    shard: bool = False
    outdated: bool = False
    passed: bool = False
    deaths: int = 0
    item: Admitted | None = None
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    gathered_since: dict[bool, float] = field(default_factory=dict)
    is_said_held_up: bool = False
    all_sent: int = 0
    all_copied: int = 0
    stored_before: int = 0
    strikes: int = 0
    saved_at: float = 0.0
    every_s: float = 0.0
    progress: TryProgress = field(default_factory=TryProgress)
    #: While the store does not take it: its pauses, since when, and the most of it that was in the store meanwhile.
    outage: Backoff = field(default_factory=_no_outage)
    outage_since: float = 0.0
    outage_stored: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what kills uploaders."""
        return self.deaths >= DEATHS_TO_SUSPECT

    @property
    def is_paused(self) -> bool:
        """Whether it is not to be tried now."""
        return self.not_before > 0

    @property
    def is_ready(self) -> bool:
        """Whether it can be committed now, as far as it goes."""
        return self.state == UPLOADED and not self.is_paused

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.id.partition(".")[2].rpartition(".")[0]

    @property
    def left(self) -> int:
        """Bytes not yet sent."""
        return 0 if self.state == UPLOADED else max(self.size - self.sent, 0)

    @property
    def place(self) -> Place:
        """Where it stands in line."""
        return self.order, self.id

    def stored_bytes(self, known: CheckpointState) -> int:
        """How much of it is in the store for good, by what the journal knows: whole files, and parts of others."""
        entries = self.item.entries if self.item is not None else {}
        return sum(entries[path].size for path in known.files if path in entries) + sum(
            min(len(upload.parts) * upload.part_bytes, entries[path].size if path in entries else self.size)
            for path, upload in known.parts.items()
        )

    def store_failed(self, now: float, stored: int) -> float:
        """The store did not take it. Returns for how many seconds it has been so (``now``: monotonic seconds).

        Only what is in the store for good, and was not before, ends an outage: bytes that were sent in vain, parts that
        are found again, and those that are stored anew after an upload was lost do not.

        Parameters
        ----------
        stored : int
            How many bytes of it are in the store for good.
        """
        if not self.outage.count or stored > self.outage_stored:
            self.outage.reset()
            self.outage_since, self.outage_stored = now, stored
        self.outage.failed(now)
        return now - self.outage_since

    def store_answered(self) -> None:
        """The store is back."""
        self.outage.reset()
        self.is_said_held_up = False

    def let_go(self) -> None:
        """It has ended, and only its outcome is still asked for. There may be thousands of these."""
        self.item = None
        self.fingerprints = self.gathered_since = _NOTHING
        self.progress, self.outage = _ENDED_PROGRESS, _ENDED_OUTAGE

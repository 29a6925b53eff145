"""What the card is to show: written down as things happen (``card/rows.py``); the uploader is told to write it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from ..card.rows import Log, Row, metrics_of
from ..config import CARD_BEAT_S, CARD_END_S, CARD_REFRESH_S, CARD_TEXT, Config
from ..errors import os_reason
from ..ipc.protocol import Message
from ..spool.journal import COMMITTED, UPLOADED, UPLOADING
from ..spool.records import Admitted
from ..spool.spool import Spool
from ..system.clock import Clock, moment
from ..system.printable import visible
from .child import Child
from .job import Job
from .owners import Owners

P = ParamSpec("P")


def _harmless(method: Callable[Concatenate[Card, P], None]) -> Callable[Concatenate[Card, P], None]:
    """Whatever goes wrong here, the card ends with it, and uploads go on."""

    @functools.wraps(method)
    def guarded(card: Card, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(card, *args, **kwargs)
        except Exception as error:
            card.give_up(f"The card ends here, by a bug of async_ckpt: {type(error).__name__}: {error}")

    return guarded


class Card:
    """See the module's docstring. Where no card is wanted (``Config.card``) it only writes things down: the line at the
    end of the step is made of them as well.

    Parameters
    ----------
    on_trouble : callable
        Gets what is said of a card that cannot be written down.
    """

    def __init__(
        self, spool: Spool, config: Config, uploader: Child, owners: Owners, clock: Clock,
        on_trouble: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._spool, self._uploader, self._owners, self._clock = spool, uploader, owners, clock
        self._is_wanted, self._on_trouble = config.card, on_trouble
        #: The store of cards, as the owner has named it; empty: no owner has, yet.
        self._store: Message = {}
        self._log = Log(spool.directory)
        self._has_news, self._next_look, self._next_beat = True, 0.0, 0.0
        #: How many notices there were when the card was ordered last: the card shows them, also to who comes later.
        self._notices = 0
        #: In what state the card that was ordered last showed the task, and whether that one is written.
        self._ordered, self._is_written = "", False
        self._over_since: float | None = None

    def begin(self, store: object) -> None:
        """An owner says where cards are kept (a ``StoreSpec`` as JSON; None: it has no card)."""
        if isinstance(store, dict):
            self._store = store
            self._next_look = 0.0

    # -- what happens --------------------------------------------------------------------------------------------------

    @_harmless
    def saved(self, job: Job, item: Admitted) -> None:
        """A checkpoint was admitted."""
        reference = item.reference
        self._note({
            "id": job.id, "attempt": item.order[0], "name": visible(str(reference["name"]), CARD_TEXT),
            "version": item.order[1], "size": item.size, "state": job.state, "saved_at": item.captured.wall_ns / 1e9,
            "blocked_s": item.blocked_s, "metrics": metrics_of(reference.get("metadata")),
        })  # fmt: skip

    @_harmless
    def began(self, job: Job, item: Admitted) -> None:
        """Its upload was begun, or begun anew."""
        self._note({"id": job.id, "state": UPLOADING, **({"began_s": self._age(item)} if job.tries <= 1 else {})})

    @_harmless
    def uploaded(self, job: Job, item: Admitted) -> None:
        """All of it is in the store."""
        self._note({"id": job.id, "state": UPLOADED, "uploaded_s": self._age(item), **_bytes_of(job)})

    @_harmless
    def ended(self, job: Job, state: str, why: str) -> None:
        """It was committed, has failed, or was dropped."""
        when = {"durable_s": self._age(job.item)} if state == COMMITTED and job.item is not None else {}
        self._note({"id": job.id, "state": state, "why": visible(why, CARD_TEXT), **when, **_bytes_of(job)})

    @_harmless
    def annotated(self, identity: str, metadata: object) -> None:
        """Something was added to its metadata, which is this now."""
        self._note({"id": identity, "metrics": metrics_of(metadata)})

    def give_up(self, why: str) -> None:
        """There is no card any more."""
        if self._is_wanted:
            self._is_wanted = False
            self._on_trouble(why)

    def _age(self, item: Admitted) -> float:
        return round(item.captured.age_s(moment(self._clock)), 3)

    def _note(self, row: Row) -> None:
        self._has_news = True
        try:
            self._log.append([row])
        except OSError as error:
            self._on_trouble(f"The card will lack something: {os_reason(error)}")

    # -- the card ------------------------------------------------------------------------------------------------------

    @_harmless
    def tick(self, now: float, facts: Callable[[], Message], *, is_busy: bool) -> None:
        """Have the card written, if it would show something new.

        Parameters
        ----------
        now : float
            Monotonic seconds.
        facts : callable
            Makes what the card says of this moment.
        is_busy : bool
            Something is being uploaded.
        """
        if not self._is_wanted or not self._store:
            return
        state, notices = self._owners.state, len(self._owners.notices)
        self._has_news |= notices != self._notices
        is_due = now >= self._next_look and (self._has_news or is_busy or now >= self._next_beat)
        if (is_due or state != self._ordered) and self._uploader.has_spoken:
            self._ordered, self._is_written, self._has_news, self._notices = state, False, False, notices
            self._next_look, self._next_beat = now + CARD_REFRESH_S, now + CARD_BEAT_S
            self._uploader.tell({
                "op": "card", "id": "", "store": self._store, "at": self._clock.time(), "state": state,
                "attempt": self._owners.attempt, "loaded": self._spool.resumed(self._owners.attempt), **facts(),
            })  # fmt: skip

    def on_written(self, message: Message) -> None:
        """The uploader has written it, or cannot."""
        self._is_written = message.get("state") == self._ordered

    def uploader_died(self) -> None:
        """What it was told is to be told to the next one."""
        self._ordered, self._is_written, self._next_look = "", False, 0.0

    def is_done(self, now: float) -> bool:
        """Whether the card shows how the task has ended, or cannot for so long that nobody waits for it any more."""
        if not self._is_wanted or not self._store or (self._is_written and not self._has_news):
            return True
        if self._over_since is None:
            self._over_since = now
        return now - self._over_since >= CARD_END_S


def _bytes_of(job: Job) -> Row:
    return {"sent": job.all_sent, "copied": job.all_copied}

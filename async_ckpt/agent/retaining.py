"""When checkpoints that are not to be kept are removed, and which of them somebody still needs.

The uploader looks what the rules do not keep (``retention/apply.py``). Then the task's process is asked which of these
its artifacts refer to. What nobody needs the uploader removes. Where the task is gone without a word, nothing is
removed: the next attempt begins with what there is.
"""

from __future__ import annotations

from collections.abc import Collection

from ..config import RETAIN_ANSWER_S, RETAIN_S, Config
from ..ipc.protocol import Message
from ..retention.rules import rules_of
from ..spool.spool import Spool
from .child import Child
from .owners import Owners


class Retaining:
    """See the module's docstring. One step at a time: looked for, asked about, removed."""

    def __init__(self, spool: Spool, config: Config, uploader: Child, owners: Owners) -> None:
        self._spool, self._uploader, self._owners = spool, uploader, owners
        #: A gang is one task, and its first node's agent sees to all of it.
        self._is_wanted = bool(rules_of(config)) and spool.task.node == 0
        self._has_news, self._next = False, 0.0
        #: Whether the uploader has been told something that it has not answered.
        self._is_ordered = False
        #: What the owners are asked about, until when (monotonic seconds), and what they need of it.
        self._asked: list[str] = []
        self._asked_until = 0.0
        #: What the artifacts of a task that has ended refer to; None: it has not said so.
        self._kept_at_end: Collection[str] | None = None

    def look_again(self) -> None:
        """Something was committed, or has other metadata."""
        self._has_news = True

    def tick(self, now: float, *, may_begin: bool) -> None:
        """Go on, if there is something to do (``now``: monotonic seconds)."""
        if not self._is_wanted or self._is_ordered:
            return
        if self._asked:
            if now >= self._asked_until:  # Whoever does not answer may need all of it.
                self._asked = []
                self._has_news = True
            return
        is_due = now >= self._next or self._kept_at_end is not None
        if self._has_news and may_begin and is_due and self._uploader.has_spoken:
            self._has_news, self._next, self._is_ordered = False, now + RETAIN_S, True
            self._uploader.tell({"op": "retain", "id": ""})

    def on_message(self, message: Message, now: float) -> None:
        """The uploader has looked, or removed."""
        self._is_ordered = False
        if message["op"] == "removed":
            self._has_news |= bool(message["keys"])  # There may be more.
            return
        self._has_news |= bool(message["more"])
        ours = {self._spool.loaded(), str((self._spool.resumed(self._owners.attempt) or {}).get("key"))}
        self._asked = [key for key in message["keys"] if key not in ours]
        if not self._asked:
            return
        self._asked_until = now + RETAIN_ANSWER_S
        if self._kept_at_end is not None:
            self.on_answer(self._kept_at_end)
        elif self._owners:
            self._owners.tell({"push": "needed", "keys": self._asked})
        else:
            self._asked = []

    def on_answer(self, needed: Collection[str]) -> None:
        """The task's process needs these, of what it was asked about."""
        asked, self._asked = self._asked, []
        keys = [key for key in asked if key not in needed]
        if keys:
            self._is_ordered = True
            self._uploader.tell({"op": "remove", "id": "", "keys": keys})

    def task_ended(self, needed: Collection[str]) -> None:
        """The task has ended well, and its artifacts refer to these."""
        self._kept_at_end, self._has_news = needed, True

    def uploader_died(self) -> None:
        """What it was told is to be told to the next one."""
        self._is_ordered, self._asked, self._has_news = False, [], True

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be removed, or nobody knows what is still needed."""
        idle = not self._is_ordered and not self._asked
        return not self._is_wanted or (idle and (not self._has_news or self._kept_at_end is None))

"""Has the store told what was added to the metadata of checkpoints after their save (``spool/annotations.py``)."""

from __future__ import annotations

from ..config import ANNOTATE_AGAIN_S
from ..ipc.protocol import Message
from ..spool.annotations import Annotation, Annotations
from ..spool.journal import COMMITTED, FAILED, REMOVED, SUPERSEDED
from .card import Card
from .child import Child
from .queue import Queue


class Annotating:
    """One at a time, in the order of their files' names; of a checkpoint that is not committed yet, once it is."""

    def __init__(self, annotations: Annotations, queue: Queue, uploader: Child, card: Card) -> None:
        self._annotations, self._queue, self._uploader, self._card = annotations, queue, uploader, card
        self._ordered: Annotation | None = None
        self._next, self._has_news = 0.0, True
        #: Why the last one could not be written, for whoever waits.
        self.why = ""

    def look_again(self) -> None:
        """Somebody has added something, or a checkpoint has come to its end."""
        self._has_news = True

    @property
    def left(self) -> int:
        """How many are to be written yet."""
        return len(self._annotations.names()) if self._ordered is not None or self._has_news else 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be written."""
        return not self.left

    def tick(self, now: float) -> None:
        """Order the next one (``now``: monotonic seconds)."""
        if self._ordered is not None or not self._has_news or now < self._next or not self._uploader.has_spoken:
            return
        for name in sorted(self._annotations.names()):
            found = self._annotations.read(name)
            job = self._queue.jobs.get(found.id) if found is not None else None
            state = job.state if job is not None else COMMITTED
            if found is None or state in (FAILED, SUPERSEDED, REMOVED):  # Of no use to anybody.
                self._annotations.drop(name)
            elif state == COMMITTED:
                self._ordered = found
                self._uploader.tell({"op": "annotate", "id": "", "name": name})
                return
        self._has_news = False  # What is left waits for a commit.

    def on_message(self, message: Message, now: float) -> str:
        """The uploader has written it, or not. Returns what is to be said of it; mostly nothing."""
        done, self._ordered = self._ordered, None
        if done is None:
            return ""
        self.why = str(message.get("why") or "")
        if message.get("transient"):
            self._next = now + ANNOTATE_AGAIN_S
            return ""
        self._annotations.drop(done.name)
        if self.why:
            return f"What was added to the metadata of {done.id} is not in the store: {self.why}"
        self._card.annotated(done.id, message.get("metadata"))
        return ""

    def uploader_died(self) -> None:
        """What it was told is to be told to the next one."""
        self._ordered, self._has_news = None, True

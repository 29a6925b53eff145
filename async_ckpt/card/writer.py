"""Writes the card, where Metaflow looks for cards. It runs in the uploader, which has stores, and idle priority.

Two objects are written: the *page*, which holds everything, and an *update* of it, which is small and goes out more
often: those that have the page open are shown what it says (``metaflow_card_update`` in ``page.js``). An update holds
what has changed since the page of its *token* was first written. When that is too much, there is a new token, and
viewers load the page again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import anyio

from ..config import (
    CARD_PAGE_BYTES_S,
    CARD_PAGE_S,
    CARD_TIMEOUT_S,
    CARD_UPDATE_ROWS,
)
from ..errors import CheckpointError, NotFound
from ..ipc.protocol import Message
from ..layout import TaskInfo
from ..stores.base import Store
from ..system.clock import Clock
from .page import data_of, page
from .place import card_place
from .rows import Row, Rows, rows_of, table

log = logging.getLogger(__name__)

#: The token of a page that is never written again.
_FINAL = "final"


class CardWriter:
    """The card of one task.

    Parameters
    ----------
    store : Store
        At the root of all cards.
    folder : str
        The spool.
    """

    def __init__(self, store: Store, task: TaskInfo, folder: str, clock: Clock) -> None:
        self._store, self._task, self._clock = store, task, clock
        self._rows = Rows(folder)
        self._place = card_place(task)
        self._writing = anyio.Lock()
        self._newest: Message | None = None
        self._has_read_earlier = False
        self._token, self._changed = "", dict[str, None]()
        self._next_page = 0.0
        #: What the user should be told, once.
        self.notice = ""

    async def write(self, facts: Message) -> None:
        """Write the card, with what the agent says of this moment (``agent/card.py``). Of several calls that wait for
        each other only the last is of use.

        A card that cannot be written is said once in ``notice``, and nothing else comes of it.
        """
        self._newest = facts
        async with self._writing:
            if self._newest is not facts:
                return
            try:
                with anyio.fail_after(CARD_TIMEOUT_S):
                    await self._write(facts)
            except (CheckpointError, OSError, TimeoutError) as error:
                why = str(error) or f"it took longer than {CARD_TIMEOUT_S:g} s"
                self.notice = f"The card cannot be written: {why}. Checkpoints are not touched by that"

    async def _write(self, facts: Message) -> None:
        changed = self._rows.read_on()
        if not self._has_read_earlier:
            await self._read_earlier(int(facts["attempt"]))
        now, is_last = self._clock.monotonic(), facts["state"] != "running"
        self._changed.update(dict.fromkeys(changed))
        begins_anew = self._token in ("", _FINAL) or len(self._changed) > CARD_UPDATE_ROWS
        token = _FINAL if is_last else f"{facts['at']:.3f}" if begins_anew else self._token
        if token != self._token:
            self._token, self._changed, self._next_page = token, {}, now
        if now >= self._next_page or is_last:
            # The page first: who sees another token in the update loads it at once.
            text = page(self._data(facts, self._rows.all.values()), self._token).encode()
            await self._store.put_bytes(self._place.page, text)
            self._next_page = now + max(CARD_PAGE_S, len(text) / CARD_PAGE_BYTES_S)
        update = self._data(facts, (self._rows.all[identity] for identity in self._changed))
        told = {"reload_token": self._token, "data": update, "created_on": facts["at"]}
        await self._store.put_bytes(self._place.update, json.dumps(told, separators=(",", ":")).encode())

    def _data(self, facts: Message, rows: Iterable[Row]) -> dict[str, Any]:
        task = self._task
        known = {"pathspec": task.pathspec, "attempt": facts["attempt"], "node": task.node, "nodes": task.nodes}
        return {**facts, "task": known, **table(rows, self._rows.metrics())}

    async def _read_earlier(self, attempt: int) -> None:
        """Take up what the card has of earlier attempts that this machine knows nothing of: the page, and what had
        changed since.
        """
        self._has_read_earlier = True
        if not attempt:
            return
        mine = set(self._rows.all)
        for key, data_in in ((self._place.page, data_of), (self._place.update, lambda text: json.loads(text)["data"])):
            try:
                text = (await self._store.get_bytes(key)).decode(errors="replace")
                for row in rows_of(data_in(text)):
                    if int(row["attempt"]) < attempt and row["id"] not in mine:
                        self._rows.add(row)
            except NotFound:
                continue
            except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning(f"What the card of {self._task.pathspec} had of earlier attempts cannot be read: {error}")

    async def aclose(self) -> None:
        """Let go of the store."""
        await self._store.aclose()

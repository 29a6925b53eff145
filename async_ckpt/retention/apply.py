"""Removes what a task's rules do not keep, for the uploader: of this task alone, and only checkpoints of this package.

What the rules keep is decided anew each time, by what the store lists. Of what they do not keep, these stay all the
same: the newest that a retry would load, what ``latest`` names (of the task, and of its step in the scope), and what
somebody says that it needs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .. import layout
from ..config import RETAIN_MOST, Config
from ..errors import CheckpointError, TransientStoreError
from ..stores import catalog
from ..stores.base import Store
from ..system.concurrency import for_each
from .delete import delete, finish
from .rules import Rules, value_of


class Retention:
    """Works for one task.

    Parameters
    ----------
    rules : Rules
        At least one.
    """

    def __init__(self, store: Store, task: layout.TaskInfo, rules: Rules, config: Config) -> None:
        self._store, self._task, self._rules, self._config = store, task, rules, config
        #: What was read of the task's metadata, by the name of its object.
        self._known: dict[str, dict[str, Any]] = {}
        self._has_finished = False
        #: Where the candidates of the last call ended, and whether there are more.
        self._after: tuple[tuple[int, int], str] | None = None
        self.has_more = False
        #: The store has said that nothing may be removed.
        self._is_refused = False
        #: What the user should know, once.
        self.notice = ""

    async def candidates(self, most: int | None = RETAIN_MOST) -> list[str]:
        """Keys of what may be removed, the oldest first; at most so many of them, or all. What is not removed comes
        again when all others have had their turn (``has_more``).

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        self.has_more = False
        if self._is_refused:
            return []
        if not self._has_finished:  # What another process has begun to remove, and not ended.
            folder = layout.deleting_folder(self._task.flow, self._task.step)
            await finish(self._store, f"{folder}/{self._task.scope}/{self._task.identifier}", self._config)
            self._has_finished = True
        found = await self._list()
        self.notice = self._rules.unjudged(found)
        kept = self._rules.kept(found)
        newest = max((one for one in found if layout.is_latest(one)), key=layout.order, default=None)
        needed = {newest["key"]} if newest is not None else set()
        for folder in (self._task.task_folder, self._task.scope_folder):
            latest = await catalog.read_reference(self._store, folder, layout.LATEST)
            needed |= {latest["key"]} if latest is not None else set()
        ours = (one for one in found if isinstance(one.get("manifest"), str))
        left = sorted((layout.order(one), one["key"]) for one in ours if one["key"] not in kept.keys() | needed)
        if self._after is not None:
            left = [one for one in left if one > self._after]
        self.has_more = most is not None and len(left) > most
        self._after = left[most - 1] if self.has_more and most is not None else None
        return [key for _, key in left[:most]]

    def forget(self, key: str) -> None:
        """What is known of this one is not so any more."""
        self._known = {name: data for name, data in self._known.items() if data["key"] != key}

    async def _list(self) -> list[dict[str, Any]]:
        folder = self._task.task_folder
        names = await catalog.list_names(self._store, folder)
        self._known = {name: data for name, data in self._known.items() if name in names}
        best = self._rules.best

        async def read(name: str) -> None:
            data = await catalog.read_reference(self._store, folder, name)
            if data is not None:
                self._known[name] = data

        # What has no number may have got it since.
        unread = [
            name
            for name in names
            if name not in self._known
            or (best is not None and not isinstance(value_of(self._known[name], best.metric), float))
        ]
        await for_each(unread, self._config.files_in_flight, read)
        return list(self._known.values())

    async def remove(self, keys: Collection[str]) -> list[str]:
        """Remove candidates, one after the other. Returns the keys of those that are removed; what cannot be removed is
        said in ``notice``.
        """
        removed: list[str] = []
        for name, reference in list(self._known.items()):
            if reference["key"] not in keys:
                continue
            try:
                await delete(self._store, reference, self._config)
            except CheckpointError as error:
                self._is_refused = not isinstance(error, TransientStoreError)
                again = "Nothing more is removed" if self._is_refused else "It is tried again"
                self.notice = f"Checkpoints that are not to be kept cannot be removed: {error}. {again}"
                break
            del self._known[name]
            removed.append(reference["key"])
        return removed

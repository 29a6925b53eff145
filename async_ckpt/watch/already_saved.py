"""What this task has saved already: by this watch, by another one, or by an earlier attempt.

A retry often loads a checkpoint back under its name, for its trainer to go on from. It is recognised by its name, its
files, their sizes and times, which a load gives back, and is not saved again. What came back by other means has other
times, and is saved. What was never saved is saved as well, even if it is older than what the task has saved since.
Neither becomes the newest: what the trainer writes from here on is that.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from ..layout import newest
from ..spool.journal import COMMITTED, FAILED, FINAL, REMOVED, SUPERSEDED
from ..task.checkpointer import Checkpointer
from .entry import Entry
from .gone import Gone
from .tree import Tree

#: The field of a checkpoint's metadata by which it is recognised: ``AlreadySaved.mark``.
WATCHED = "watched"

#: How many of its own saves a watch remembers, for entries that come back after they were out of sight.
_MAX_REMEMBERED = 100_000

_DIGITS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class AlreadySaved:
    """Knows which entries of a watched directory are saved, and which of them are in the store.

    Parameters
    ----------
    checkpointer : Checkpointer
        Is asked for what the task has saved.
    root : str
        The watched directory.
    name : str
        Under which the watch saves.
    began_ns : int
        When this attempt began (wall clock): it may have loaded what was saved before that. 0: it is the first one.
    """

    def __init__(self, checkpointer: Checkpointer, root: str, name: str, began_ns: int) -> None:
        self._checkpointer, self._root, self._name = checkpointer, root, name
        self._began = _EPOCH + timedelta(microseconds=began_ns // 1000)
        #: By path: the id under which what is there was saved; empty: it is in the store, without asking.
        self._ids: dict[str, str] = {}
        #: What this watch has saved: the id, by the first half of its mark.
        self._mine: dict[str, str] = {}
        #: What the task had saved before: whether that was in the store, by the first half of its mark, by the second.
        self._here: dict[str, bool] = {}
        self._anywhere: dict[str, bool] = {}
        self._sizes: set[tuple[str, int]] = set()
        self._newest: datetime | None = None

    def learn(self) -> None:
        """Ask what the task has saved.

        Raises
        ------
        CheckpointError
            The store does not answer.
        """
        listed = self._checkpointer.list()
        self._newest = datetime.min.replace(tzinfo=timezone.utc)
        for data in listed:
            if data.get("state") in (FAILED, SUPERSEDED):
                continue
            self._newest = max(self._newest, newest.moment(data))
            metadata = data.get("metadata")
            # Other clients keep whatever they were given.
            if isinstance(metadata, dict) and WATCHED in metadata:
                known, in_store = str(metadata[WATCHED]), data.get("state") == COMMITTED
                self._here[known[:_DIGITS]] = in_store
                if newest.moment(data) < self._began:
                    self._anywhere[known[_DIGITS:]] = in_store
                self._sizes.add((os.path.basename(str(metadata.get("path"))), int(data.get("size") or 0)))

    def mark(self, path: str, tree: Tree) -> str:
        """What is kept with a checkpoint: which entry of which directory it was, and which one wherever it lies."""
        return self._mark_here(path, tree) + self._mark_anywhere(path, tree)

    def _mark_here(self, path: str, tree: Tree) -> str:
        return tree.identity(self._root, path, self._name)

    def _mark_anywhere(self, path: str, tree: Tree) -> str:
        return tree.identity("", os.path.basename(path), self._name)

    def note(self, path: str, tree: Tree, identity: str) -> None:
        """This watch has saved what is at ``path`` as ``identity``; empty: it is not known what becomes of that."""
        if not identity:
            self._ids.pop(path, None)
            return
        self._ids[path] = self._mine[self._mark_here(path, tree)] = identity
        if len(self._mine) > _MAX_REMEMBERED:
            del self._mine[next(iter(self._mine))]

    def has(self, entry: Entry | Gone) -> bool:
        """Whether it was saved just as it is."""
        here = self._mark_here(entry.path, entry.tree)
        if here in self._mine:
            self._ids[entry.path] = self._mine[here]
            return True
        in_store = self._here.get(here)
        # What was just written may look like a file of another rank, with the same name, size and time.
        if in_store is None and entry.is_old:
            in_store = self._anywhere.get(self._mark_anywhere(entry.path, entry.tree))
        if in_store:
            self._ids[entry.path] = ""
        return in_store is not None

    def outranks(self, entry: Entry | Gone) -> bool:
        """Whether an old entry is no newer than what was saved, or has the name and size of something that was."""
        if not entry.is_old or self._newest is None:
            return False
        written = _EPOCH + timedelta(microseconds=entry.tree.newest_ns // 1000)
        return written <= self._newest or (os.path.basename(entry.path), entry.tree.size) in self._sizes

    def forget(self, path: str) -> None:
        """The entry is gone."""
        self._ids.pop(path, None)

    # -- what became of it -----------------------------------------------------------------------------------------

    def is_mine(self, path: str) -> bool:
        """Whether this watch has saved what is at ``path``, as far as is known."""
        return bool(self._ids.get(path))

    def is_in_store(self, path: str, *, ask: bool) -> bool:
        """Whether what was saved of it is in the store, as far as is known. ``ask`` the agent, if this watch has saved
        it.
        """
        identity = self._ids.get(path)
        if not identity or not ask:
            return identity == ""
        state, _ = self._checkpointer.state(identity)
        if state in (COMMITTED, REMOVED):
            self._ids[path] = ""
        elif state in FINAL:
            del self._ids[path]
        return state in (COMMITTED, REMOVED)

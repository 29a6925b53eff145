"""What this task has saved before, and what of it lies in the watched directory once more.

A retry often loads a checkpoint back under its name, for its trainer to go on from. It is known by its name, its files,
their sizes and times, which a load gives back, and is not saved again. Where it came back by other means, with other
times, or was not saved before but is older than what the task has saved since, it is saved, and never as the newest:
what a trainer writes from here on is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ..layout import newest
from ..spool.journal import COMMITTED, FAILED, SUPERSEDED
from . import tree as trees
from .tree import Tree

#: The field of a checkpoint's metadata by which it is known again: ``mark``.
WATCHED = "watched"

_DIGITS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def mark(root: str, relative: str, name: str, tree: Tree) -> str:
    """What is kept with a checkpoint: which entry of which directory it was, and what it was wherever it lies."""
    return trees.identity(root, relative, name, tree) + _anywhere(relative, name, tree)


def _anywhere(relative: str, name: str, tree: Tree) -> str:
    return trees.identity("", os.path.basename(relative), name, tree)


class Before:
    """What the task has saved, as its listing says, newest first.

    Parameters
    ----------
    name : str
        Under which the watch saves.
    began_ns : int
        When this attempt began (wall clock): it may have loaded what was saved before that. 0: there is nothing before.
    """

    def __init__(self, listed: Sequence[Mapping[str, Any]], root: str, name: str, began_ns: int) -> None:
        self._root, self._name = root, name
        #: By mark, the first half and the second: whether it is committed.
        self._here: dict[str, bool] = {}
        self._anywhere: dict[str, bool] = {}
        self._sizes: set[tuple[str, int]] = set()
        self._newest = datetime.min.replace(tzinfo=timezone.utc)
        began = _EPOCH + timedelta(microseconds=began_ns // 1000)
        for data in listed:
            if data.get("state") in (FAILED, SUPERSEDED):
                continue
            self._newest = max(self._newest, newest.moment(data))
            metadata = data.get("metadata")
            # Other clients keep whatever they were given.
            if isinstance(metadata, dict) and WATCHED in metadata:
                known, is_committed = str(metadata[WATCHED]), data.get("state") == COMMITTED
                self._here[known[:_DIGITS]] = is_committed
                if newest.moment(data) < began:
                    self._anywhere[known[_DIGITS:]] = is_committed
                self._sizes.add((os.path.basename(str(metadata.get("path"))), int(data.get("size") or 0)))

    def is_committed(self, relative: str, tree: Tree, *, came_along: bool) -> bool | None:
        """Whether an entry, as it is, is in the store, or on its way (False); None: it was not saved before.

        ``came_along``: it is not what a trainer has just written. That may be like one of another rank, which has files
        of the same names and sizes, written in the same tick of the clock.
        """
        here = self._here.get(trees.identity(self._root, relative, self._name, tree))
        return self._anywhere.get(_anywhere(relative, self._name, tree)) if here is None and came_along else here

    def outranks(self, relative: str, tree: Tree) -> bool:
        """Whether something that came along is no newer than what was saved, or has the name and size of one of it."""
        written = _EPOCH + timedelta(microseconds=trees.newest_ns(tree) // 1000)
        return written <= self._newest or (os.path.basename(relative), trees.size(tree)) in self._sizes

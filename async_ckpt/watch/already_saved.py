"""What this task has saved already, so that nothing in the watched directory is saved twice.

A retry often loads a checkpoint back under its name, for its trainer to go on from. It is recognised by its name, its
files, their sizes and times, which a load gives back, and is not saved again. What came back by other means has other
times, and is saved; so is what was never saved but is older than what the task has saved since. Neither becomes the
newest: what the trainer writes from here on is that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ..layout import newest
from ..spool.journal import COMMITTED, FAILED, SUPERSEDED
from .entry import Tree

#: The field of a checkpoint's metadata by which it is recognised: ``mark``.
WATCHED = "watched"

_DIGITS = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def mark(root: str, relative: str, name: str, tree: Tree) -> str:
    """What is kept with a checkpoint: which entry of which directory it was, and which one wherever it lies."""
    return tree.identity(root, relative, name) + _anywhere(relative, name, tree)


def _anywhere(relative: str, name: str, tree: Tree) -> str:
    return tree.identity("", os.path.basename(relative), name)


class AlreadySaved:
    """What the task has saved, as its listing says.

    Parameters
    ----------
    listed : sequence of dict
        The task's checkpoints.
    root : str
        The watched directory.
    name : str
        Under which the watch saves.
    began_ns : int
        When this attempt began (wall clock): it may have loaded what was saved before that. 0: it is the first one.
    """

    def __init__(self, listed: Sequence[Mapping[str, Any]], root: str, name: str, began_ns: int) -> None:
        self._root, self._name = root, name
        #: Whether it is committed, by the first half of its mark, and by the second half.
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

    def is_committed(self, relative: str, tree: Tree, *, is_old: bool) -> bool | None:
        """Whether an entry, as it is, is in the store (True) or on its way (False); None: it was not saved.

        ``is_old``: a trainer has not just written it. What was just written may look like a file of another rank, with
        the same name, size and time; so it is compared with entries of this directory only.
        """
        here = self._here.get(tree.identity(self._root, relative, self._name))
        return self._anywhere.get(_anywhere(relative, self._name, tree)) if here is None and is_old else here

    def outranks(self, relative: str, tree: Tree) -> bool:
        """Whether an old entry is no newer than what was saved, or has the name and size of something that was."""
        written = _EPOCH + timedelta(microseconds=tree.newest_ns // 1000)
        return written <= self._newest or (os.path.basename(relative), tree.size) in self._sizes

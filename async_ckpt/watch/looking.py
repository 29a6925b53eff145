"""One complete look at a watched directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from ..errors import os_reason
from .entry import Entry, Look
from .events import Events
from .names import Pattern, ends_a_save
from .tree import Fact, Tree, read_tree
from .writers import open_for_writing


class Looking:
    """Looks at a directory, again and again.

    Parameters
    ----------
    root : str
        The directory.
    done : str or None
        The marker's name.
    report : callable
        Hears of what cannot be read, once.
    """

    def __init__(
        self, root: str, pattern: Pattern, done: str | None, events: Events, report: Callable[[str], None]
    ) -> None:
        self._root, self._pattern, self._done = root, pattern, done
        self._events, self._report = events, report
        #: By path: why an entry could not be read at the last look.
        self.unreadable: dict[str, str] = {}
        self._trees: dict[str, Tree] = {}

    def begin(self) -> frozenset[str]:
        """Events come from now on. Returns what is there already."""
        self._events.follow(self._root)
        try:
            return frozenset(self._pattern.find(self._root))
        except OSError:
            return frozenset()  # There is no directory yet; what else is wrong with it the first look tells.

    def look(self) -> dict[str, Look] | None:
        """Every entry as it is now, by its relative path; None: the directory is not there.

        Raises
        ------
        OSError
            It cannot be read.
        """
        self._events.follow(self._root)
        # Before looking: what is renamed meanwhile is seen by the next look.
        renames = self._events.take_renames()
        try:
            found = list(self._pattern.find(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return None
        for folder in {os.path.dirname(relative) for relative in found} - {""}:
            self._events.follow(os.path.join(self._root, folder))
        finished = {new for new, old in renames.items() if not self._is_a_match(old) or ends_a_save(old, new)}
        self.unreadable, before = {}, self.unreadable
        self._trees = {relative: self._read(relative, before) for relative in found}
        return {
            relative: Look(tree, self._marker(relative, tree), os.path.join(self._root, relative) in finished)
            for relative, tree in self._trees.items()
        }

    def _read(self, relative: str, before: Collection[str]) -> Tree:
        path = os.path.join(self._root, relative)
        try:
            return read_tree(path)
        except OSError as error:
            # It alone waits, as it was: the others are looked at.
            self.unreadable[relative] = why = f"{error.filename or path} cannot be read: {os_reason(error)}"
            if relative not in before:
                self._report(why)
            return self._trees.get(relative, {})

    def _marker(self, relative: str, tree: Tree) -> Fact | None:
        if self._done is None:
            return None
        if "" in tree:
            return read_tree(f"{os.path.join(self._root, relative)}.{self._done.lstrip('.')}").get("")
        return tree.get(self._done)

    def _is_a_match(self, old: str) -> bool:
        """Whether a path is that of a checkpoint itself: then its new name alone says nothing."""
        return bool(old) and self._pattern.matches(os.path.relpath(old, self._root))

    def open(self, entries: Collection[Entry]) -> set[str]:
        """Paths of those that somebody has open for writing."""
        evidence = {entry.path: entry.evidence for entry in entries}
        written = open_for_writing(set().union(*evidence.values()))
        return {path for path, files in evidence.items() if written and files & written}

    def end(self) -> None:
        """No more events."""
        self._events.end()

"""One complete look at a watched directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence

from ..errors import os_reason
from ..system.writers import Inode, open_for_writing
from .entry import Entry, Look
from .events import Events
from .group import Group, Grouping, must_come
from .names import Pattern, ends_a_save
from .options import WatchOptions
from .tree import Fact, Tree, read_members, read_tree


class Looking:
    """Looks at a directory, again and again.

    Parameters
    ----------
    root : str
        The directory.
    report : callable
        Hears of what cannot be read, once.
    """

    def __init__(self, root: str, options: WatchOptions, events: Events, report: Callable[[str], None]) -> None:
        self._root, self._done = root, options.done
        self._pattern, self._grouping = Pattern(options.pattern), Grouping(options.group)
        self._events, self._report = events, report
        #: By path: why an entry could not be read at the last look.
        self.unreadable: dict[str, str] = {}
        self._trees: dict[str, Tree] = {}
        #: Who had which file open for writing, when it was last asked.
        self._writers: dict[Inode, int] = {}

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
        groups = self._groups(found)
        grouped = {
            os.path.join(os.path.dirname(path), name) for path, group in groups.items() for name in group.members
        }
        alone = {relative: Group(()) for relative in found if relative not in grouped}
        looks = {}
        for relative, group in {**alone, **groups}.items():
            tree = self._read(relative, group.members, before)
            renamed = not group.members and os.path.join(self._root, relative) in finished
            lacks = group.lacks or must_come(tree)
            marker = self._marker(relative, group.members, tree)
            looks[relative] = Look(tree, marker, renamed, group.members, group.beside, lacks)
        self._trees = {relative: look.tree for relative, look in looks.items()}
        return looks

    def _groups(self, found: list[str]) -> dict[str, Group]:
        """What belongs together, by its path."""
        matched: dict[str, list[str]] = {}
        for relative in found:
            matched.setdefault(os.path.dirname(relative), []).append(os.path.basename(relative))
        return {
            os.path.join(folder, key): group
            for folder, names in matched.items()
            for key, group in self._grouping.arrange(os.path.join(self._root, folder), names).items()
        }

    def _read(self, relative: str, members: Sequence[str], before: Collection[str]) -> Tree:
        path = os.path.join(self._root, relative)
        try:
            return read_members(os.path.dirname(path), members) if members else read_tree(path)
        except OSError as error:
            # It alone waits, as it was: the others are looked at.
            self.unreadable[relative] = why = f"{error.filename or path} cannot be read: {os_reason(error)}"
            if relative not in before:
                self._report(why)
            return self._trees.get(relative, {})

    def _marker(self, relative: str, members: Sequence[str], tree: Tree) -> Fact | None:
        if self._done is None:
            return None
        # Of a group of directories, as DeepSpeed's with the file that names it, each has it.
        folders = [name for name in members if name in tree and tree[name].kind == stat.S_IFDIR]
        inside = [tree.get(f"{name}/{self._done}") for name in folders]
        if found := [fact for fact in inside if fact is not None]:
            return max(found, key=lambda fact: fact.mtime_ns) if len(found) == len(folders) else None
        if "" in tree or members:
            return read_tree(f"{os.path.join(self._root, relative)}.{self._done.lstrip('.')}").get("")
        return tree.get(self._done)

    def _is_a_match(self, old: str) -> bool:
        """Whether a path is that of a checkpoint itself: then its new name alone says nothing."""
        return bool(old) and self._pattern.matches(os.path.relpath(old, self._root))

    def open(self, entries: Collection[Entry], *, mapped: bool) -> set[str]:
        """Paths of those that somebody has open for writing; ``mapped``: or mapped so."""
        evidence = {entry.path: entry.evidence for entry in entries}
        # Whoever had one open has it still, as a rule: to look at all processes takes longer than all the rest.
        known = set(self._writers.values())
        still = open_for_writing(set().union(*evidence.values()), known, mapped=mapped) if known else {}
        others = {path: files for path, files in evidence.items() if files.isdisjoint(still)}
        found = {**still, **open_for_writing(set().union(*others.values()), mapped=mapped)}
        asked = set().union(*evidence.values())
        self._writers = {**{file: pid for file, pid in self._writers.items() if file not in asked}, **found}
        return {path for path, files in evidence.items() if not files.isdisjoint(found)}

    def end(self) -> None:
        """No more events."""
        self._events.end()

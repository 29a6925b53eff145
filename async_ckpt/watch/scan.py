"""One complete look at a watched directory, and how often there may be one."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Collection, Sequence

from ..config import WATCH_CPU_SHARE, WATCH_CPU_WITHIN_S, WATCH_SHORTEST_PAUSE_S
from ..errors import os_reason
from ..system.writers import Inode, open_for_writing
from .entry import Entry, Look
from .events import Events
from .group import Group, Grouping, must_come
from .names import Pattern, ends_a_save
from .options import WatchOptions
from .tree import Fact, Tree, read_members, read_tree

log = logging.getLogger(__package__)


class Scanner:
    """Looks at a directory, again and again.

    Parameters
    ----------
    root : str
        The directory.
    """

    def __init__(self, root: str, options: WatchOptions, events: Events) -> None:
        self._root, self._done, self._events = root, options.done, events
        self._pattern, self._grouping = Pattern(options.pattern), Grouping(options.group)
        #: By path: why an entry could not be read at the last look.
        self.unreadable: dict[str, str] = {}
        self._trees: dict[str, Tree] = {}
        #: Who had which file open for writing when that was last checked.
        self._writers: dict[Inode, int] = {}

    def begin(self) -> frozenset[str]:
        """Events come from now on. Returns the paths of what is there already."""
        self._events.follow(self._root)
        try:
            return frozenset(self._pattern.find(self._root))
        except OSError:
            return frozenset()  # There is no directory yet. If it is something else, the first look tells.

    def scan(self) -> dict[str, Look] | None:
        """Every entry as it is now, by its relative path; None: the directory is not there.

        Raises
        ------
        OSError
            The directory cannot be read.
        """
        self._events.follow(self._root)
        # First of all: what is renamed in the meantime is seen by the next look.
        renames = self._events.take_renames()
        try:
            found = list(self._pattern.find(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return None
        for folder in {os.path.dirname(relative) for relative in found} - {""}:
            self._events.follow(os.path.join(self._root, folder))
        finished = {new for new, old in renames.items() if not self._is_an_entry(old) or ends_a_save(old, new)}
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
            marker = self._marker(relative, group.members, tree)
            lacks = group.lacks or must_come(tree)
            looks[relative] = Look(tree, marker, renamed, group.members, group.trackers, lacks)
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
            # This one stays as it was last seen; the others go on.
            self.unreadable[relative] = why = f"{error.filename or path} cannot be read: {os_reason(error)}"
            if relative not in before:
                log.warning(why)
            return self._trees.get(relative, Tree())

    def _marker(self, relative: str, members: Sequence[str], tree: Tree) -> Fact | None:
        if self._done is None:
            return None
        # In a group of directories, such as DeepSpeed's, each of them must have it.
        folders = [name for name in members if name in tree and tree[name].kind == stat.S_IFDIR]
        inside = [tree.get(f"{name}/{self._done}") for name in folders]
        if found := [fact for fact in inside if fact is not None]:
            return max(found, key=lambda fact: fact.mtime_ns) if len(found) == len(folders) else None
        if "" in tree or members:
            return read_tree(f"{os.path.join(self._root, relative)}.{self._done.lstrip('.')}").get("")
        return tree.get(self._done)

    def _is_an_entry(self, old: str) -> bool:
        """Whether a path is a checkpoint's. If it gets another name, that alone says nothing."""
        return bool(old) and self._pattern.matches(os.path.relpath(old, self._root))

    def open(self, entries: Collection[Entry], *, mapped: bool) -> set[str]:
        """Paths of the entries that somebody has open for writing; ``mapped``: or mapped for writing."""
        files_of = {entry.path: entry.must_be_closed for entry in entries}
        # Whoever had a file open probably still has: that is checked first, as to check all processes takes longer than
        # all the rest.
        known = set(self._writers.values())
        still = open_for_writing(set().union(*files_of.values()), known, mapped=mapped) if known else {}
        others = {path: files for path, files in files_of.items() if files.isdisjoint(still)}
        found = {**still, **open_for_writing(set().union(*others.values()), mapped=mapped)}
        asked = set().union(*files_of.values())
        self._writers = {**{file: pid for file, pid in self._writers.items() if file not in asked}, **found}
        return {path for path, files in files_of.items() if not files.isdisjoint(found)}

    def end(self) -> None:
        """No more events."""
        self._events.end()


class CpuBudget:
    """Keeps looking from taking more than a share of one core (see ``config``)."""

    def __init__(self) -> None:
        #: Seconds of CPU that are left (below 0: it must rest), and when that was so.
        self._left, self._at = WATCH_CPU_SHARE * WATCH_CPU_WITHIN_S, time.monotonic()

    def spend(self, cost_s: float) -> None:
        """A look has taken so many seconds of CPU."""
        now, most = time.monotonic(), WATCH_CPU_SHARE * WATCH_CPU_WITHIN_S
        self._left = max(min(self._left + WATCH_CPU_SHARE * (now - self._at), most) - cost_s, -most)
        self._at = now

    def rest_s(self) -> float:
        """For how many seconds there must be no look."""
        return max(-self._left / WATCH_CPU_SHARE - (time.monotonic() - self._at), WATCH_SHORTEST_PAUSE_S)

"""Which of the entries that were seen is a finished checkpoint: decided from looks at the directory, nothing else.

What counts as finished:

- it carries the marker, where one was asked for, and nobody has that open for writing: then nothing else counts; a
  marker that is older than something in it may be one of an earlier time, and it must be quiet as well;
- it was renamed into place, from a name that is no checkpoint's, and nobody has a file of it open for writing;
- it was quiet for ``patience`` seconds: nothing in it changed, and nobody had a file of it open for writing.

The third is a guess, and these make it a careful one. Patience grows with the pauses the writer is seen to make (twice
the longest). A directory must be quiet ten times as long if it lacks files which the one before it had, or if it is the
first of its kind and nobody has begun the next: nothing tells then whether more files will come. What only lost files
since it was saved is being removed: never saved. And what the writer of an earlier attempt had under its hands
when it was killed is quiet for ever: it counts when it is written to again, or has a marker that is as new.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from . import tree as trees
from .departed import Departed, Kept, Other, Verdict, judge, kind_of, kind_of_file, lacking, shape_of
from .entry import MOMENT_S, Entry, Look
from .group import is_under_way
from .tree import Tree

#: How many times ``settle`` what looks unfinished must be quiet, and patience may grow to.
HOLD = 10

#: What is gone waits for so many seconds to be saved, if others are to be held meanwhile.
_WAITS_S = 2.0

#: What is gone is compared with so many others at most.
_COMPARED = 64

#: So many kinds of entries (names without their numbers) have their last shape remembered.
_MAX_SHAPES = 1000


class Finished(NamedTuple):
    """An entry that can be saved, and why it counts as finished, in words."""

    entry: Entry
    why: str


class Recogniser:
    """Follows the entries of one directory.

    Parameters
    ----------
    settle_s : float
        Quiet time, in seconds, after which an entry counts as finished.
    needs_marker : bool
        Only those with the marker do.
    clock : callable
        Monotonic seconds.
    report : callable
        Gets lines for people.
    """

    def __init__(
        self, settle_s: float, *, needs_marker: bool, clock: Callable[[], float], report: Callable[[str], None]
    ) -> None:
        self._settle_s, self._needs_marker, self._clock, self._report = settle_s, needs_marker, clock, report
        self.entries: dict[str, Entry] = {}
        self._orders = 0
        self._longest_pause_s = 0.0
        self._newest_saved = -1
        #: By kind: how the last one looked that was saved.
        self._whole: dict[str, Tree] = {}
        #: What is gone, and may have been a checkpoint.
        self.departed: list[Departed] = []

    @property
    def patience_s(self) -> float:
        """How long an entry must be quiet now, in seconds."""
        return min(max(self._settle_s, 2 * self._longest_pause_s), HOLD * self._settle_s)

    # -- looking ---------------------------------------------------------------------------------------------------

    def observe(self, looks: Mapping[str, Look], *, old: Collection[str] = ()) -> list[Entry]:
        """Take in one complete look at the directory. Returns the entries that have vanished since the last one.

        ``old``: paths of what nobody has written since the watch began.
        """
        gone = {path: entry for path, entry in self.entries.items() if path not in looks} | self._rotated(looks)
        for path in gone:
            del self.entries[path]
        new = [path for path in looks if path not in self.entries]
        moved = {_fingerprint(entry.tree): entry for entry in gone.values()}
        # Those that come together are put into the order in which they were written.
        # One that is still empty has just been begun, whatever is written before the next look.
        for path in sorted(new, key=lambda p: (not (t := looks[p].tree), trees.newest_ns(t), trees.natural(p))):
            look = looks[path]
            now = self._clock()
            entry = Entry(path, look.tree, now, self._next_order(), is_old=path in old, open_since=now)
            entry.marker, entry.renamed = look.marker, look.renamed
            entry.members = look.members
            before = moved.get(_fingerprint(look.tree)) if trees.has_files(look.tree) else None
            if before is not None and before.path in gone:  # The same one under another name.
                del gone[before.path]
                entry.saved, entry.held, before.held = before.saved, before.held, None
                entry.order, entry.changed_at, entry.is_old = before.order, before.changed_at, before.is_old
            self.entries[path] = entry
        # As they were written: which of two that are written anew is the newer one says nothing else.
        for path, look in sorted(looks.items(), key=lambda item: trees.newest_ns(item[1].tree)):
            self._update(self.entries[path], look, is_old=path in old)
        grouped = {os.path.join(os.path.dirname(path), name) for path in new for name in looks[path].members}
        for entry in list(gone.values()):
            held = entry.held.tree if entry.held is not None else None
            # What is found in another one now, as a part of it, is not gone.
            if entry.path in grouped or any(_has_part_of(looks[path].tree, entry.tree) for path in new):
                del gone[entry.path]
            elif held and held != entry.saved:
                self._depart(entry, rewritten=entry.path in looks, together=gone.values())
        return list(gone.values())

    def _rotated(self, looks: Mapping[str, Look]) -> dict[str, Entry]:
        """Entries that were renamed to a name that was there already, as from ``latest`` to ``previous``, or whose name
        was taken by such a one.
        """
        moved = {
            _fingerprint(entry.tree): path
            for path, entry in self.entries.items()
            if trees.has_files(entry.tree) and (path not in looks or looks[path].tree != entry.tree)
        }
        names = set[str]()
        for path, look in looks.items() if moved else ():
            if path not in self.entries or self.entries[path].tree != look.tree:
                before = moved.get(_fingerprint(look.tree))
                names |= {path, before} if before is not None else set()
        return {path: self.entries[path] for path in names if path in self.entries and path in looks}

    def _depart(self, entry: Entry, *, rewritten: bool, together: Collection[Entry] = ()) -> None:
        """What is held of it is all that there is."""
        held, entry.held = entry.held, None
        if held is not None and not self._needs_marker:
            others = itertools.chain(self.entries.values(), together)
            followed = any(e.order > entry.order and trees.has_files(e.tree) for e in others)
            departed = Departed(entry.path, held, entry.order, followed, rewritten, entry.is_old, self._clock())
            self.departed.append(departed)

    def _update(self, entry: Entry, look: Look, *, is_old: bool) -> None:
        entry.members, entry.lacks = look.members, look.lacks
        entry.beside.update(look.beside)
        if look.tree != entry.tree:
            self._changed(entry, look.tree)
            # What is loaded, or copied, has its old times once it is complete.
            entry.is_old = is_old
            entry.is_orphan = entry.is_orphan and is_old
        entry.marker = look.marker
        entry.renamed = entry.renamed or look.renamed

    def _changed(self, entry: Entry, tree: Tree) -> None:
        now = self._clock()
        pause = now - entry.changed_at
        is_anew = entry.saved is None and _is_begun_anew(entry.tree, tree, was_still=entry.held is not None)
        if entry.held is not None and not _only_lost(entry.held.tree, tree):
            rewritten = entry.held.lasts and not entry.held.goes_on()
            if rewritten or not _shares_files(entry.held.tree, tree):
                self._depart(entry, rewritten=True)
                entry.order = self._next_order()
            else:
                self.was_held_too_early(entry)
        entry.leaving = entry.saved is not None and _only_lost(entry.saved, tree)
        if is_anew:
            entry.order = self._next_order()
        elif entry.saved is None:
            if trees.has_files(entry.tree) and not entry.is_old:
                self._longest_pause_s = max(self._longest_pause_s, pause)
        elif not entry.leaving and entry.tree == entry.saved:
            if _only_gained(entry.saved, tree):
                self._longest_pause_s = max(self._longest_pause_s, pause)
                self._report(
                    f"{entry.path} grew again {pause:.0f} s after it was finished, as it seemed; it is saved anew when "
                    f"it has been quiet for {self.patience_s:.0f} s. A marker (done=) or a longer settle= avoids that"
                )
            else:
                entry.order = self._next_order()  # Written anew, as a last.ckpt is.
        entry.tree, entry.changed_at, entry.renamed = tree, now, False
        entry.open_since = now

    def note_open(self, paths: Collection[str]) -> None:
        """Take in which entries are open for writing now: a slow writer is not a quiet one."""
        now = self._clock()
        for entry in self.entries.values():
            entry.is_open = entry.path in paths
            if not entry.is_open:
                continue
            entry.changed_at = now
            if entry.open_since is not None and now - entry.open_since > self.patience_s:
                self._report(f"{entry.path} waits: nothing changes, but a process has a file of it open for writing")
                entry.open_since = None

    def expect_orphans(self, before_ns: int) -> None:
        """What was there at the first look and was last written before ``before_ns`` (wall clock) is an earlier
        attempt's, which was killed: of each kind the last one may be half.
        """
        earlier = [e for e in self.entries.values() if e.is_old and trees.newest_ns(e.tree) < before_ns]
        last = {kind_of(entry.path): entry for entry in sorted(earlier, key=lambda entry: entry.order)}
        for entry in last.values():
            entry.is_orphan = entry.saved is None

    def _next_order(self) -> int:
        self._orders += 1
        return self._orders

    # -- deciding --------------------------------------------------------------------------------------------------

    def finished(self, *, last: bool = False) -> list[Finished]:
        """Those that can be saved now, in the order in which they were begun.

        ``last``: the writer has ended well; what lacks files that others had is taken as it is.
        """
        due = sorted((entry for entry in self.entries.values() if entry.is_due), key=lambda entry: entry.order)
        return [Finished(entry, why) for entry in due if (why := self._why_finished(entry, last))]

    def _why_finished(self, entry: Entry, last: bool) -> str:
        quiet = self._clock() - entry.changed_at
        if not trees.size(entry.tree) and not entry.marked and not last:
            return ""  # Begun, and nothing written.
        if entry.is_open or not self._may_finish(entry):
            return ""
        if self._needs_marker:
            # One that is written anew in place still has the marker of its last time.
            at_once = entry.is_confirmed and entry.saved is None
            return "marked" if at_once or quiet >= self.patience_s else ""
        if entry.renamed:
            return "renamed into place"
        lacking = "" if last else self.lacking(entry)
        unsure = lacking or (not last and (self._may_grow(entry) or self._is_under_way(entry)))
        if quiet >= (HOLD * self._settle_s if unsure else self.patience_s):
            return f"quiet for {quiet:.0f} s" + (f", although it lacks {lacking}" if lacking else "")
        return ""

    def _may_grow(self, entry: Entry) -> bool:
        """Whether this is a directory of which nobody knows what it will hold, and which may still be written to."""
        kind = kind_of(entry.path)
        # From the last one back: of thousands that come at once, nearly each has a later one there.
        later = (e for e in reversed(self.entries.values()) if e.order > entry.order and trees.has_files(e.tree))
        return "" not in entry.tree and kind not in self._whole and not any(kind_of(e.path) == kind for e in later)

    def lacking(self, entry: Entry) -> str:
        """A file that the last one of its kind had and this one has not; empty if there is none. Numbers in names do
        not count.
        """
        before = self._whole.get(kind_of(entry.path))
        return lacking(entry.tree, before) if before is not None else ""

    def to_ask(self, *, last: bool = False) -> tuple[list[Entry], list[Entry]]:
        """Those that may be held, and those that may be finished, if nobody has them open for writing. ``last``: as for
        ``finished``.
        """
        now = self._clock()
        early, final = list[Entry](), list[Entry]()
        for entry in self.pending():
            quiet = now - entry.changed_at
            if last or entry.renamed or entry.marked or quiet >= self.patience_s:
                final.append(entry)
            elif entry.is_open or (entry.held is None and quiet >= entry.moment_s):
                early.append(entry)
        return early, final

    def to_hold(self) -> list[Entry]:
        """What stands still, and should be held now."""
        now = self._clock()
        return [
            entry
            for entry in self.entries.values()
            if entry.held is None and self._may_be_held(entry) and now - entry.changed_at >= entry.moment_s
        ]

    def _may_be_held(self, entry: Entry) -> bool:
        is_begun = entry.is_due and not entry.is_open and bool(trees.size(entry.tree))
        may_be = is_begun and not self._needs_marker and self._may_finish(entry)
        return may_be and not self._is_under_way(entry)

    def _is_under_way(self, entry: Entry) -> bool:
        """Whether it has files with names of unfinished ones, which the last of its kind had not."""
        names = set(map(kind_of_file, is_under_way(entry.tree)))
        return bool(names - set(map(kind_of_file, self._whole.get(kind_of(entry.path), {}))))

    def soon_s(self) -> float:
        """After how many seconds there may be something to hold; infinite if there is nothing."""
        now = self._clock()
        waiting = [e for e in self.entries.values() if e.held is None and (e.is_open or self._may_be_held(e))]
        return min((max(e.moment_s + e.changed_at - now, 0) or MOMENT_S for e in waiting), default=math.inf)

    def holds(self) -> list[Kept]:
        """All that is held and still needed."""
        held = [entry.held for entry in self.entries.values() if entry.held is not None]
        return held + [departed.held for departed in self.departed]

    def was_held_too_early(self, entry: Entry) -> None:
        """What is held of it is of no use: it must stand still for longer."""
        entry.held, entry.moment_s = None, min(2 * entry.moment_s, max(self.patience_s, MOMENT_S))

    def may_wait(self, departed: Departed) -> bool:
        """Whether something else is about to be held, which may not last: what is held already does."""
        return self._clock() - departed.at < _WAITS_S and self.soon_s() <= 2 * MOMENT_S

    def judge(self, departed: Departed, *, last: bool = False) -> Verdict:
        """Whether what is gone was a whole checkpoint. ``last``: as for ``finished``."""
        kind, shape = kind_of(departed.path), shape_of(departed.tree)
        before = self._whole.get(kind)
        others = [] if before is None else [Other(before, True)]
        begun = [entry for entry in self.entries.values() if trees.has_files(entry.tree)]
        newest = max([entry.order for entry in begun] + [other.order for other in self.departed])
        held = [entry for entry in begun if entry.held is not None or entry.saved == entry.tree]
        items: list[Entry | Departed] = [*held[-_COMPARED:], *self.departed]
        for item in items:
            is_alike = kind_of(item.path) == kind or shape_of(item.tree) == shape
            if item.order > departed.order and is_alike:
                is_saved = isinstance(item, Entry) and item.saved == item.tree
                others.append(Other(item.tree, is_saved or item.order < newest))
        return judge(departed, others, last=last)

    def pending(self) -> list[Entry]:
        """What is not saved as it stands now and may count as finished one day, in the order in which it was begun."""
        return sorted((e for e in self.entries.values() if e.is_due and self._may_finish(e)), key=lambda e: e.order)

    def hopeless(self) -> list[Entry]:
        """What is not saved, and only a marker or another write could change that."""
        return [entry for entry in self.entries.values() if entry.is_due and not self._may_finish(entry)]

    def _may_finish(self, entry: Entry) -> bool:
        if entry.lacks:
            return False
        return entry.is_confirmed or (not entry.is_orphan and (entry.marked or not self._needs_marker))

    # -- what became of them ---------------------------------------------------------------------------------------

    def is_newest(self, entry: Entry | Departed) -> bool:
        """Whether none that was begun after it has been saved: it is what a retry should resume from."""
        return entry.order >= self._newest_saved

    def note_saved(self, entry: Entry, tree: Tree) -> None:
        """``entry`` was saved as it looked in ``tree``, by this watch or an earlier one."""
        entry.saved = tree
        self._newest_saved = max(self._newest_saved, entry.order)
        self._keep_in_mind(entry.path, tree)

    def note_published(self, departed: Departed) -> None:
        """What is gone was saved."""
        self._newest_saved = max(self._newest_saved, departed.order)
        if (entry := self.entries.get(departed.path)) is not None:
            entry.moment_s = MOMENT_S  # What is done to it is done to whole ones.
        self._keep_in_mind(departed.path, departed.tree)

    def _keep_in_mind(self, path: str, tree: Tree) -> None:
        kind = kind_of(path)
        self._whole.pop(kind, None)
        self._whole[kind] = tree
        if len(self._whole) > _MAX_SHAPES:
            del self._whole[next(iter(self._whole))]

    def forget(self, entry: Entry) -> None:
        """It was taken away, by us."""
        if self.entries.get(entry.path) is entry:
            del self.entries[entry.path]


def _has_part_of(after: Tree, before: Tree) -> bool:
    """Whether a file of ``before`` is there just as it was; its number alone may be another file's by now."""
    return any(trees.is_file(fact) for fact in set(before.values()) & set(after.values()))


def _is_begun_anew(before: Tree, after: Tree, *, was_still: bool) -> bool:
    """Whether all of it is written once more: nothing is as it was, and something is another file, or is shorter; or no
    longer, where it ``was_still``: one that is allocated first and filled later is not.
    """
    if _has_part_of(after, before):
        return False
    files = [(fact, after[path]) for path, fact in before.items() if trees.is_file(fact) and path in after]
    return any(now.inode != fact.inode or now.size < fact.size + was_still for fact, now in files)


def _shares_files(before: Tree, after: Tree) -> bool:
    return not trees.inodes(before).isdisjoint(trees.inodes(after))


def _fingerprint(tree: Tree) -> frozenset[tuple[str, trees.Fact]]:
    return frozenset(tree.items())


def _only_lost(before: Tree, after: Tree) -> bool:
    return len(after) < len(before) and all(before.get(path) == fact for path, fact in after.items())


def _only_gained(before: Tree, after: Tree) -> bool:
    """Nothing that was there went or was written anew; files may be longer."""
    for path, fact in before.items():
        now = after.get(path)
        if now is None or (now.kind, now.inode) != (fact.kind, fact.inode):
            return False
        if now != fact and now.size <= fact.size:
            return False
    return True

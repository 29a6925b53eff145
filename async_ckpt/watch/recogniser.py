"""Which entries of a watched directory are finished checkpoints.

It does not look into the directory itself. It is told what is there (``observe``) and what is open (``note_open``).

An entry counts as finished when

- it has the marker, where one was asked for. Nobody may have the marker open for writing. Then nothing else counts. A
  marker that is older than something in the entry may be from an earlier time: then all must be quiet as well;
- it was renamed into place, and nobody has a file of it open for writing;
- it was quiet for ``quiet_s`` seconds: nothing in it changed, and nobody had a file of it open for writing.

The last one is a guess, so care is taken. A directory must be quiet ten times as long if it lacks files which the one
before it had, or if it is the first of its kind and the next one is not begun: more files may come. Once an entry grew
again after it was saved, all must be quiet for so long. An entry that only lost files since it was saved is being
removed, and is not saved again. And what an earlier attempt was writing when it was killed stays quiet for ever: it
counts when it is written to again, or has a marker that is as new.

Waiting loses nothing: what stands still is captured early (``to_capture``). If it goes before it counts as finished, it
is judged by that (``gone``).
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ..config import WATCH_STILL_S
from .captured import EarlyCapture
from .entry import Entry, Look, natural
from .gone import Gone, Other, Verdict, judge, kind_of, lacking, shape_of
from .tree import Tree

log = logging.getLogger(__package__)

#: An entry that may be unfinished must be quiet this many times ``settle``.
UNSURE_FACTOR = 10

#: With how many others an entry that is gone is compared at most.
_MAX_COMPARED = 64

#: For how many kinds of entries (names without their numbers) the looks of the last one are remembered.
_MAX_KINDS = 1000


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
        Only entries with the marker do.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, settle_s: float, *, needs_marker: bool, clock: Callable[[], float]) -> None:
        self._settle_s, self._needs_marker, self._clock = settle_s, needs_marker, clock
        self.entries: dict[str, Entry] = {}
        #: What is gone, and may have been a checkpoint.
        self.gone: list[Gone] = []
        #: How long an entry must be quiet, in seconds.
        self.quiet_s = settle_s
        self._last_order = 0
        self._newest_saved = -1
        #: By kind: how the last one looked that was saved.
        self._last_saved: dict[str, Tree] = {}

    # -- taking in what was seen -----------------------------------------------------------------------------------

    def observe(self, looks: Mapping[str, Look], *, old: Collection[str] = ()) -> list[Entry]:
        """Take in one complete look at the directory. Returns the entries that have vanished since the last one.

        ``old``: paths of entries that nobody has written to since the watch began.
        """
        moved = self._moved(looks)
        gone = {
            path: entry
            for path, entry in self.entries.items()
            if path not in looks or path in moved or path in moved.values()
        }
        self.entries = {path: entry for path, entry in self.entries.items() if path not in gone}
        new = [path for path in looks if path not in self.entries]
        # Of entries that come together, the one that was written first was begun first. One that is still empty has
        # just been begun.
        for path in sorted(new, key=lambda path: (not (tree := looks[path].tree), tree.newest_ns, natural(path))):
            now = self._clock()
            entry = gone.pop(moved.get(path, ""), None) or Entry(
                path, looks[path].tree, now, self._next_order(), is_old=path in old, unchanged_since=now
            )
            entry.path, entry.renamed = path, looks[path].renamed
            self.entries[path] = entry
        # In the order of their times: of two that are written anew, nothing else tells which is the newer one.
        for path, look in sorted(looks.items(), key=lambda item: item[1].tree.newest_ns):
            self._update(self.entries[path], look, is_old=path in old)
        grouped = {os.path.join(os.path.dirname(path), name) for path in new for name in looks[path].members}
        # What is found now as a part of another one is not gone.
        vanished = [entry for path, entry in gone.items() if path not in grouped]
        for entry in vanished:
            if entry.captured is not None and entry.captured.tree != entry.saved:
                self._note_gone(entry, rewritten=entry.path in looks, together=vanished)
        return vanished

    def _moved(self, looks: Mapping[str, Look]) -> dict[str, str]:
        """New path → old path of entries that have another name now. It may have been there already, as when ``latest``
        becomes ``previous``.
        """
        changed = {
            entry.tree.fingerprint: path
            for path, entry in self.entries.items()
            if entry.tree.has_files and (path not in looks or looks[path].tree != entry.tree)
        }
        return {
            path: changed[fingerprint]
            for path, look in looks.items()
            if changed and (path not in self.entries or self.entries[path].tree != look.tree)
            if (fingerprint := look.tree.fingerprint) in changed
        }

    def _note_gone(self, entry: Entry, *, rewritten: bool, together: Collection[Entry] = ()) -> None:
        """All that is left of an entry is what was captured. ``together``: those that vanished with it."""
        captured, entry.captured = entry.captured, None
        if captured is not None and not self._needs_marker:
            others = itertools.chain(self.entries.values(), together)
            followed = any(other.order > entry.order and other.tree.has_files for other in others)
            self.gone.append(Gone(entry.path, captured, entry.order, followed, rewritten, entry.is_old))

    def _update(self, entry: Entry, look: Look, *, is_old: bool) -> None:
        entry.marker, entry.members, entry.lacks = look.marker, look.members, look.lacks
        entry.trackers.update(look.trackers)
        if look.tree != entry.tree:
            self._note_change(entry, look.tree)
            # What is loaded, or copied, gets its old times when it is complete.
            entry.is_old = is_old
            entry.is_leftover = entry.is_leftover and is_old
        entry.renamed = entry.renamed or look.renamed

    def _note_change(self, entry: Entry, tree: Tree) -> None:
        now = self._clock()
        if entry.captured is not None and not _only_lost(entry.captured.tree, tree):
            rewritten = entry.captured.is_copy and not entry.captured.is_continued()
            if rewritten or entry.captured.tree.inodes.isdisjoint(tree.inodes):
                self._note_gone(entry, rewritten=True)
                entry.order = self._next_order()
            else:
                self.note_captured_too_early(entry)
        entry.is_being_removed = entry.saved is not None and _only_lost(entry.saved, tree)
        if not _only_gained(entry.tree, tree) and not _only_lost(entry.tree, tree):
            entry.order = self._next_order()  # Written anew, as a last.ckpt is.
        elif entry.tree == entry.saved and not entry.is_being_removed:
            self.quiet_s = UNSURE_FACTOR * self._settle_s
            log.warning(
                f"{entry.path} grew again {now - entry.changed_at:.0f} s after it was finished, as it seemed; it is "
                f"saved anew when it has been quiet for {self.quiet_s:.0f} s. A marker (done=) or a longer settle= "
                "avoids that"
            )
        entry.tree, entry.changed_at, entry.renamed, entry.unchanged_since = tree, now, False, now

    def note_open(self, paths: Collection[str]) -> None:
        """Take in which entries are open for writing now: their writers may be slow."""
        now = self._clock()
        for entry in self.entries.values():
            entry.is_open = entry.path in paths
            if not entry.is_open:
                continue
            entry.changed_at = now
            if entry.unchanged_since is not None and now - entry.unchanged_since > self.quiet_s:
                log.info(f"{entry.path} waits: nothing changes, but a process has a file of it open for writing")
                entry.unchanged_since = None

    def expect_leftovers(self, before_ns: int) -> None:
        """Entries that were there at the first look and were last written to before ``before_ns`` (wall clock) are an
        earlier attempt's. It was killed: of each kind the last one may be half.
        """
        earlier = [e for e in self.entries.values() if e.is_old and e.tree.newest_ns < before_ns]
        last = {kind_of(entry.path): entry for entry in sorted(earlier, key=lambda entry: entry.order)}
        for entry in last.values():
            entry.is_leftover = entry.saved is None

    def _next_order(self) -> int:
        self._last_order += 1
        return self._last_order

    # -- deciding what is finished ---------------------------------------------------------------------------------

    def finished(self, *, last: bool = False) -> list[Finished]:
        """Entries that can be saved now, in the order in which they were begun.

        ``last``: the writer has ended well. Then an entry that lacks files which others had is taken as it is.
        """
        unsaved = sorted((entry for entry in self.entries.values() if entry.is_unsaved), key=lambda entry: entry.order)
        return [Finished(entry, why) for entry in unsaved if (why := self._why_finished(entry, last))]

    def _why_finished(self, entry: Entry, last: bool) -> str:
        quiet = self._clock() - entry.changed_at
        if not entry.tree.size and entry.marker is None and not last:
            return ""  # Begun, and nothing written.
        if entry.is_open or not self._may_finish(entry):
            return ""
        if self._needs_marker:
            # An entry that is written anew in place still has the marker of its last time.
            at_once = entry.is_confirmed and entry.saved is None
            return "marked" if at_once or quiet >= self.quiet_s else ""
        if entry.renamed:
            return "renamed into place"
        missing = "" if last else self.lacking(entry)
        unsure = missing or (not last and self._may_grow(entry))
        if quiet >= (UNSURE_FACTOR * self._settle_s if unsure else self.quiet_s):
            return f"quiet for {quiet:.0f} s" + (f", although it lacks {missing}" if missing else "")
        return ""

    def _may_grow(self, entry: Entry) -> bool:
        """Whether this is a directory, the first and the newest of its kind: nobody knows which files it will have."""
        kind = kind_of(entry.path)
        # Backwards: of thousands that come at once, nearly each has a later one near the end.
        later = (e for e in reversed(self.entries.values()) if e.order > entry.order and e.tree.has_files)
        return "" not in entry.tree and kind not in self._last_saved and not any(kind_of(e.path) == kind for e in later)

    def lacking(self, entry: Entry) -> str:
        """A file that the last saved one of its kind had and this one has not; empty if there is none. Numbers in names
        do not count.
        """
        before = self._last_saved.get(kind_of(entry.path))
        return lacking(entry.tree, before) if before is not None else ""

    def _may_finish(self, entry: Entry) -> bool:
        """Whether it can count as finished without a marker yet to come or another write."""
        if entry.lacks:
            return False
        return entry.is_confirmed or (not entry.is_leftover and (entry.marker is not None or not self._needs_marker))

    def pending(self) -> list[Entry]:
        """Entries that are not saved as they are and may count as finished one day, in the order of their begin."""
        return sorted((e for e in self.entries.values() if e.is_unsaved and self._may_finish(e)), key=lambda e: e.order)

    def never_finished(self) -> list[Entry]:
        """Entries that are not saved, and only a marker or another write could change that."""
        return [entry for entry in self.entries.values() if entry.is_unsaved and not self._may_finish(entry)]

    def to_check_for_writers(self, *, last: bool = False) -> tuple[list[Entry], list[Entry]]:
        """Entries that can be captured early, and those that are finished, if nobody has them open for writing.
        ``last``: as for ``finished``.
        """
        now = self._clock()
        early, final = list[Entry](), list[Entry]()
        for entry in self.pending():
            quiet = now - entry.changed_at
            if last or entry.renamed or entry.marker is not None or quiet >= self.quiet_s:
                final.append(entry)
            elif entry.is_open or (entry.captured is None and quiet >= entry.still_s):
                early.append(entry)
        return early, final

    # -- capturing early -------------------------------------------------------------------------------------------

    def to_capture(self) -> list[Entry]:
        """Entries that stand still, and should be captured now."""
        now = self._clock()
        return [e for e in self.entries.values() if self._should_be_captured(e) and now - e.changed_at >= e.still_s]

    def _should_be_captured(self, entry: Entry) -> bool:
        is_wanted = entry.captured is None and entry.is_unsaved and not self._needs_marker
        is_begun = not entry.is_open and bool(entry.tree.size)
        return is_wanted and is_begun and self._may_finish(entry)

    def next_capture_s(self) -> float:
        """After how many seconds there may be something to capture; infinite if there is nothing."""
        now = self._clock()
        waiting = [
            e for e in self.entries.values() if self._should_be_captured(e) or (e.is_open and e.captured is None)
        ]
        return min((max(e.still_s + e.changed_at - now, 0) or WATCH_STILL_S for e in waiting), default=math.inf)

    def captures(self) -> list[EarlyCapture]:
        """All that was captured early and is still needed."""
        captured = [entry.captured for entry in self.entries.values() if entry.captured is not None]
        return captured + [gone.captured for gone in self.gone]

    def note_captured_too_early(self, entry: Entry) -> None:
        """What was captured of it is of no use: it must stand still for longer."""
        entry.captured, entry.still_s = None, min(2 * entry.still_s, max(self.quiet_s, WATCH_STILL_S))

    def judge(self, gone: Gone, *, last: bool = False) -> Verdict:
        """Whether what is gone was a whole checkpoint. ``last``: as for ``finished``."""
        kind, shape = kind_of(gone.path), shape_of(gone.tree)
        before = self._last_saved.get(kind)
        others = [] if before is None else [Other(before, True)]
        begun = [entry for entry in self.entries.values() if entry.tree.has_files]
        newest = max([entry.order for entry in begun] + [other.order for other in self.gone])
        still = [entry for entry in begun if entry.captured is not None or entry.saved == entry.tree]
        items: list[Entry | Gone] = [*still[-_MAX_COMPARED:], *self.gone]
        for item in items:
            is_alike = kind_of(item.path) == kind or shape_of(item.tree) == shape
            if item.order > gone.order and is_alike:
                is_saved = isinstance(item, Entry) and item.saved == item.tree
                others.append(Other(item.tree, is_saved or item.order < newest))
        return judge(gone, others, last=last)

    # -- what became of them ---------------------------------------------------------------------------------------

    def is_newest(self, entry: Entry | Gone) -> bool:
        """Whether none that was begun after it has been saved: then a retry should resume from it."""
        return entry.order >= self._newest_saved

    def note_saved(self, entry: Entry, tree: Tree) -> None:
        """``entry`` was saved as it looked in ``tree``, by this watch or an earlier one."""
        entry.saved = tree
        self._remember(entry, tree)

    def note_gone_saved(self, gone: Gone) -> None:
        """What is gone was saved."""
        if (entry := self.entries.get(gone.path)) is not None:
            entry.still_s = WATCH_STILL_S  # It was whole when it was written anew: it was not captured too early.
        self._remember(gone, gone.tree)

    def _remember(self, saved: Entry | Gone, tree: Tree) -> None:
        self._newest_saved = max(self._newest_saved, saved.order)
        kind = kind_of(saved.path)
        self._last_saved.pop(kind, None)
        self._last_saved[kind] = tree
        if len(self._last_saved) > _MAX_KINDS:
            del self._last_saved[next(iter(self._last_saved))]

    def forget(self, entry: Entry) -> None:
        """This package has removed it."""
        if self.entries.get(entry.path) is entry:
            del self.entries[entry.path]


def _only_lost(before: Tree, after: Tree) -> bool:
    return len(after) < len(before) and all(before.get(path) == fact for path, fact in after.items())


def _only_gained(before: Tree, after: Tree) -> bool:
    """Nothing that was there was removed or written anew; files may be longer."""
    for path, fact in before.items():
        now = after.get(path)
        if now is None or (now.kind, now.inode) != (fact.kind, fact.inode):
            return False
        if now != fact and now.size <= fact.size:
            return False
    return True

"""One finished entry becomes a checkpoint, once, also where an earlier attempt or another watch saved it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..config import Config
from ..errors import BacklogError, CheckpointError, SnapshotError, StoreError, os_reason
from ..metadata import SIZE, Said, plain
from ..spool.journal import COMMITTED, FINAL
from . import summary
from . import tree as trees
from .again import WATCHED, Before, mark
from .departed import Departed, Kept
from .entry import Entry
from .options import WatchOptions
from .tree import Tree, read_tree

#: So many of its own saves a watch knows again when they come back after they were out of sight.
_MAX_MINE = 100_000

#: After an error a save is tried again, each time after twice as long, up to so many seconds.
_MAX_PAUSE_S = 60.0
#: Where there is only no room for it yet.
_MAX_BACKLOG_PAUSE_S = 5.0


class Saver(Protocol):
    """What a watch needs of a ``Checkpointer``."""

    def save(
        self, path: str, *, name: str, metadata: Mapping[str, Any], latest: bool, storage_format: str, snapshot: str,
        check: Callable[[str], None], origin: str, wait: bool,
    ) -> Any: ...  # fmt: skip
    def new_held_directory(self, path: str) -> str: ...
    def state(self, identity: str) -> tuple[str, str]: ...
    def list(self) -> Sequence[Mapping[str, Any]]: ...


class _Changed(Exception):
    """Somebody wrote to it while it was captured."""


class Saving:
    """Saves entries, and remembers what went wrong.

    Parameters
    ----------
    root : str
        The watched directory, absolute.
    config : Config
        Its limits of metadata count.
    began_ns : int
        As for ``Watch``.
    clock : callable
        Monotonic seconds.
    report : callable
        Gets lines for people.
    """

    def __init__(
        self,
        saver: Saver,
        root: str,
        options: WatchOptions,
        config: Config,
        *,
        began_ns: int,
        clock: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self._saver, self._root, self._options, self._config = saver, root, options, config
        self._began_ns, self._clock, self._report = began_ns, clock, report
        self._said = Said(report)
        self.count = 0
        self.is_under_way = False
        #: By path: why the last try failed.
        self.errors: dict[str, str] = {}
        #: By path: when the next try may be, and the pause before it (seconds).
        self._pauses: dict[str, tuple[float, float]] = {}
        #: What waits for room in the backlog only.
        self.backlog: set[str] = set()
        self._has_said_that_it_waits = False
        #: When room is asked for again, the pause before that (seconds), and why there was none; whether all wait now.
        self._room_at, self._room_pause, self._no_room, self._is_waiting = 0.0, 0.0, "", False
        #: By path: the id under which it was saved; empty: it is known to be committed.
        self._ids: dict[str, str] = {}
        #: By identity: the id under which this watch saved it; of the newest.
        self._mine: dict[str, str] = {}
        #: What the task has saved; None: the store has not told yet.
        self._before: Before | None = None

    # -- what was saved before -------------------------------------------------------------------------------------

    def learn(self) -> bool:
        """Ask what this task has saved already. False: the store does not answer now."""
        if self._before is None:
            try:
                self._before = Before(self._saver.list(), self._root, self._options.name, self._began_ns)
            except CheckpointError as error:
                self._note("", f"What was saved before cannot be listed: {error}")
                return False
            self._forgive("")
        return True

    def was_saved(self, entry: Entry | Departed) -> bool:
        """Whether it was saved just as it is, by this watch or an earlier one."""
        identity = self._identity(entry.path, entry.tree)
        if identity in self._mine:
            self._ids[entry.path] = self._mine[identity]
            return True
        committed = None
        if self._before is not None:
            committed = self._before.is_committed(entry.path, entry.tree, came_along=entry.is_old)
        if committed:
            self._ids[entry.path] = ""
        return committed is not None

    def is_outranked(self, entry: Entry | Departed) -> bool:
        """Whether the task has saved what is newer, or the same."""
        return entry.is_old and self._before is not None and self._before.outranks(entry.path, entry.tree)

    def _identity(self, path: str, tree: Tree) -> str:
        return trees.identity(self._root, path, self._options.name, tree)

    def has_saved(self, path: str) -> bool:
        """Whether this watch has saved it, as far as is known."""
        return bool(self._ids.get(path))

    def is_followed(self, path: str) -> bool:
        """Whether the last save of it may be in the store, now or later."""
        return path in self._ids

    def is_known_to_be_committed(self, path: str) -> bool:
        """Whether the last save of it is in the store, without asking."""
        return self._ids.get(path) == ""

    def is_committed(self, path: str) -> bool:
        """Whether the last save of it, which is followed, is in the store."""
        state, _ = self._saver.state(self._ids[path])
        if state == COMMITTED:
            self._ids[path] = ""
        elif state in FINAL:
            del self._ids[path]
        return state == COMMITTED

    # -- saving ----------------------------------------------------------------------------------------------------

    def may_try(self, path: str) -> bool:
        """Whether it is time for the next try."""
        return self._clock() >= self._pauses.get(path, (0.0, 0.0))[0]

    def try_all_again(self) -> None:
        """Wait no longer for the next try."""
        self._pauses.clear()
        self._room_at = 0.0

    def begin_round(self) -> None:
        """Several tries follow, the oldest first: where there is no room for that, it is not given to a newer one."""
        self._is_waiting = self._clock() < self._room_at

    def save(self, entry: Entry, why: str, *, latest: bool) -> Tree | None:
        """Save an entry. Returns the tree that was saved, or None: not now, or it has gone."""
        tree = entry.tree

        def check(now: str) -> None:
            if read_tree(now) != tree:
                raise _Changed

        path = os.path.join(self._root, entry.path)
        try:
            return tree if self._save(path, entry.path, tree, why, check, latest=latest) else None
        except _Changed:
            return None

    def save_held(self, relative: str, held: Kept, why: str, *, latest: bool) -> bool | None:
        """Save what is held of an entry. None: not now; False: it is not what was captured any more."""

        def check(now: str) -> None:
            if not held.is_intact():
                raise _Changed

        if not os.path.lexists(held.path):
            return False  # Something has cleaned the spool.
        try:
            held.complete()
        except OSError as error:
            self._note(relative, f"{relative} is not saved: {os_reason(error)}")
            return None
        try:
            return self._save(held.path, relative, held.tree, why, check, latest=latest) or None
        except _Changed:
            return False

    def _save(
        self, path: str, relative: str, tree: Tree, why: str, check: Callable[[str], None], *, latest: bool
    ) -> bool:
        if self._is_waiting:
            self._wait_for_room(relative)
            return False
        options, origin = self._options, os.path.join(self._root, relative)
        self.is_under_way = True
        try:
            reference = self._saver.save(
                path, name=options.name, metadata=self._metadata(relative, tree, path),
                latest=latest and options.latest, storage_format=options.storage_format, snapshot=options.snapshot,
                check=check, origin=origin, wait=False,  # What the trainer writes meanwhile may not last.
            )  # fmt: skip
        except StoreError as error:
            # Of what was saved before; this one is admitted, and its state is told by the flush.
            self._report(str(error))
            self._ids.pop(relative, None)
        except CheckpointError as error:
            if isinstance(error, SnapshotError) and not os.path.lexists(path):
                return False  # The trainer was quicker; the next look will tell.
            if isinstance(error, BacklogError):
                self._room_pause = min(2 * self._room_pause or 0.5, _MAX_BACKLOG_PAUSE_S)
                self._room_at, self._no_room, self._is_waiting = self._clock() + self._room_pause, str(error), True
                self._wait_for_room(relative)
                return False
            pause = min(2 * self._pauses.get(relative, (0.0, 0.5))[1], _MAX_PAUSE_S)
            self._pauses[relative] = (self._clock() + pause, pause)
            self._note(relative, f"{relative} is not saved: {error}")
            return False
        else:
            self._ids[relative] = reference.id
            self._mine[self._identity(relative, tree)] = reference.id
            if len(self._mine) > _MAX_MINE:
                del self._mine[next(iter(self._mine))]
            self._report(f"{relative} is saved as {reference.id} ({why})")
        finally:
            self.is_under_way = False
        self.count += 1
        self._has_said_that_it_waits, self._room_pause = False, 0.0
        self._forgive(relative)
        return True

    def _metadata(self, relative: str, tree: Tree, path: str) -> dict[str, Any]:
        extra: Any = {}
        source = self._options.metadata_from
        try:
            if isinstance(source, str):
                inside = os.path.join(path, os.path.basename(relative), source)  # Of a directory in a group.
                file = inside if os.path.exists(inside) else os.path.join(path, source)
                extra, notes = summary.read(file, source, self._config)
                self._said.say(notes)
            elif source is not None:
                # Here already, so that what is too large takes nothing of the rest with it.
                extra, notes = plain(source(path), self._config)
                self._said.say(note for note in notes if note.key != SIZE)  # Of that, whoever saves tells.
                extra = extra if isinstance(extra, dict) else {"metadata_from": extra}
        except (Exception, SystemExit) as error:  # The user's function may do anything; the checkpoint is worth more.
            self._report(f"{relative} is saved without metadata_from: {type(error).__name__}: {error}")
        return {"path": relative, **extra, WATCHED: mark(self._root, relative, self._options.name, tree)}

    # -- what went wrong -------------------------------------------------------------------------------------------

    def forget(self, path: str) -> None:
        """The entry is gone."""
        self._forgive(path)
        self._ids.pop(path, None)

    def _wait_for_room(self, path: str) -> None:
        """Said of the first one that waits: how much is pending changes all the time."""
        self.backlog.add(path)
        self.errors[path] = line = f"{path} waits: {self._no_room}"
        if not self._has_said_that_it_waits:
            self._has_said_that_it_waits = True
            self._report(line)

    def _note(self, path: str, line: str) -> None:
        """Report an error when it is new, not at every try."""
        if self.errors.get(path) != line:
            self._report(line)
        self.errors[path] = line

    def _forgive(self, path: str) -> None:
        self.errors.pop(path, None)
        self._pauses.pop(path, None)
        self.backlog.discard(path)

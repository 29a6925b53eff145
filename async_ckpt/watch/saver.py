"""Saves each finished entry as a checkpoint, once, also where an earlier attempt or another watch has saved it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..config import WATCH_RETRY_FIRST_S, WATCH_RETRY_MOST_S, WATCH_ROOM_MOST_S, Config
from ..errors import BacklogError, CheckpointError, SnapshotError, StoreError, os_reason
from ..metadata import SIZE, NoteLog, plain
from ..spool.journal import COMMITTED, FINAL
from . import metadata_file
from .already_saved import WATCHED, AlreadySaved, mark
from .entry import Captured, Entry, Tree, read_tree
from .gone import Gone
from .options import WatchOptions

log = logging.getLogger(__package__)

#: A watch remembers so many of its own saves, for entries that come back after they were out of sight.
_MAX_REMEMBERED = 100_000


class Checkpointer(Protocol):
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


class Saver:
    """Saves entries, and remembers which ones failed and why.

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
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        root: str,
        options: WatchOptions,
        config: Config,
        *,
        began_ns: int,
        clock: Callable[[], float],
    ) -> None:
        self._checkpointer, self._root, self._options, self._config = checkpointer, root, options, config
        self._began_ns, self._clock = began_ns, clock
        self._notes = NoteLog(log.warning)
        #: How many were saved.
        self.count = 0
        self.is_saving = False
        #: By path: why the last try failed.
        self.errors: dict[str, str] = {}
        #: By path: when the next try may be, and the pause before it (seconds).
        self._pauses: dict[str, tuple[float, float]] = {}
        #: Paths of what waits for nothing but room in the backlog.
        self.backlog: set[str] = set()
        #: Why there was no room when it was last asked for, when it is asked for again, and the pause before that
        #: (seconds).
        self._why_no_room, self._room_at, self._room_pause = "", 0.0, 0.0
        #: Whether all wait for room in this round, and whether that was logged.
        self._all_wait, self._waiting_is_logged = False, False
        #: By path: the id under which it was saved; empty: it is known to be committed.
        self._ids: dict[str, str] = {}
        #: By identity: the id under which this watch saved it.
        self._mine: dict[str, str] = {}
        #: None: the store has not told yet what the task has saved.
        self._already_saved: AlreadySaved | None = None

    # -- what was saved before -------------------------------------------------------------------------------------

    def learn_what_was_saved(self) -> bool:
        """Ask what this task has saved already. False: the store does not answer now."""
        if self._already_saved is None:
            try:
                listed = self._checkpointer.list()
            except CheckpointError as error:
                self._note_error("", f"What was saved before cannot be listed: {error}")
                return False
            self._already_saved = AlreadySaved(listed, self._root, self._options.name, self._began_ns)
            self._forget_error("")
        return True

    def was_saved(self, entry: Entry | Gone) -> bool:
        """Whether it was saved just as it is, by this watch or an earlier one."""
        if (identity := self._identity(entry.path, entry.tree)) in self._mine:
            self._ids[entry.path] = self._mine[identity]
            return True
        committed = None
        if self._already_saved is not None:
            committed = self._already_saved.is_committed(entry.path, entry.tree, is_old=entry.is_old)
        if committed:
            self._ids[entry.path] = ""
        return committed is not None

    def is_outranked(self, entry: Entry | Gone) -> bool:
        """Whether the task has saved what is newer, or the same."""
        before = self._already_saved
        return entry.is_old and before is not None and before.outranks(entry.path, entry.tree)

    def _identity(self, path: str, tree: Tree) -> str:
        return tree.identity(self._root, path, self._options.name)

    def has_saved(self, path: str) -> bool:
        """Whether this watch has saved what is at ``path``, as far as is known."""
        return bool(self._ids.get(path))

    def may_be_in_store(self, path: str) -> bool:
        """Whether the last save of it may be in the store, now or later."""
        return path in self._ids

    def is_known_to_be_in_store(self, path: str) -> bool:
        """Whether the last save of it is in the store, without asking."""
        return self._ids.get(path) == ""

    def is_in_store(self, path: str) -> bool:
        """Whether the last save of it, which may be in the store, is there now."""
        state, _ = self._checkpointer.state(self._ids[path])
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
        """End all pauses."""
        self._pauses.clear()
        self._room_at = 0.0

    def begin_round(self) -> None:
        """Several tries follow, the oldest entry first. If there is no room for one, no newer one gets it."""
        self._all_wait = self._clock() < self._room_at

    def save(self, entry: Entry, why: str, *, latest: bool) -> bool:
        """Save an entry. False: not now, or it has gone."""
        path, tree = os.path.join(self._root, entry.path), entry.tree
        try:
            return self._save(path, entry.path, tree, why, lambda now: read_tree(now) == tree, latest=latest)
        except _Changed:
            return False

    def save_captured(self, relative: str, captured: Captured, why: str, *, latest: bool) -> bool | None:
        """Save what was captured of an entry. None: not now; False: it is not what was captured any more."""
        if not os.path.lexists(captured.path):
            return False  # Something has cleaned the spool.
        try:
            captured.add_trackers()
        except OSError as error:
            self._note_error(relative, f"{relative} is not saved: {os_reason(error)}")
            return None
        try:
            is_whole = lambda now: captured.is_intact()  # noqa: E731
            return self._save(captured.path, relative, captured.tree, why, is_whole, latest=latest) or None
        except _Changed:
            return False

    def _save(
        self, path: str, relative: str, tree: Tree, why: str, is_whole: Callable[[str], bool], *, latest: bool
    ) -> bool:
        if self._all_wait:
            self._wait_for_room(relative)
            return False

        def check(now: str) -> None:
            if not is_whole(now):
                raise _Changed

        options = self._options
        self.is_saving = True
        try:
            reference = self._checkpointer.save(
                path, name=options.name, metadata=self._metadata(relative, tree, path),
                latest=latest and options.latest, storage_format=options.storage_format, snapshot=options.snapshot,
                check=check, origin=os.path.join(self._root, relative),
                wait=False,  # What the trainer writes meanwhile may not stay.
            )  # fmt: skip
        except StoreError as error:
            # It is about one that was saved before. This one is admitted, and a flush tells what becomes of it.
            log.warning(str(error))
            self._ids.pop(relative, None)
        except CheckpointError as error:
            self._note_failure(path, relative, error)
            return False
        else:
            self._ids[relative] = self._mine[self._identity(relative, tree)] = reference.id
            if len(self._mine) > _MAX_REMEMBERED:
                del self._mine[next(iter(self._mine))]
            log.info(f"{relative} is saved as {reference.id} ({why})")
        finally:
            self.is_saving = False
        self.count += 1
        self._waiting_is_logged, self._room_pause = False, 0.0
        self._forget_error(relative)
        return True

    def _metadata(self, relative: str, tree: Tree, path: str) -> dict[str, Any]:
        extra: Any = {}
        source = self._options.metadata_from
        try:
            if isinstance(source, str):
                inside = os.path.join(path, os.path.basename(relative), source)  # Of a directory in a group.
                file = inside if os.path.exists(inside) else os.path.join(path, source)
                extra, notes = metadata_file.read(file, source, self._config)
                self._notes.say(notes)
            elif source is not None:
                # Made JSON here: if it is too large, the rest of the metadata must not suffer.
                extra, notes = plain(source(path), self._config)
                self._notes.say(note for note in notes if note.key != SIZE)  # ``save`` itself tells of the size.
                extra = extra if isinstance(extra, dict) else {"metadata_from": extra}
        except (Exception, SystemExit) as error:  # The user's function may do anything; the checkpoint is worth more.
            log.warning(f"{relative} is saved without metadata_from: {type(error).__name__}: {error}")
        return {"path": relative, **extra, WATCHED: mark(self._root, relative, self._options.name, tree)}

    # -- what went wrong -------------------------------------------------------------------------------------------

    def forget(self, path: str) -> None:
        """The entry is gone."""
        self._forget_error(path)
        self._ids.pop(path, None)

    def _note_failure(self, path: str, relative: str, error: CheckpointError) -> None:
        if isinstance(error, SnapshotError) and not os.path.lexists(path):
            return  # The trainer has removed it; the next look will tell.
        if isinstance(error, BacklogError):
            self._room_pause = min(2 * self._room_pause or WATCH_RETRY_FIRST_S, WATCH_ROOM_MOST_S)
            self._room_at, self._why_no_room, self._all_wait = self._clock() + self._room_pause, str(error), True
            self._wait_for_room(relative)
            return
        pause = min(2 * self._pauses.get(relative, (0.0, WATCH_RETRY_FIRST_S))[1], WATCH_RETRY_MOST_S)
        self._pauses[relative] = (self._clock() + pause, pause)
        self._note_error(relative, f"{relative} is not saved: {error}")

    def _wait_for_room(self, path: str) -> None:
        self.backlog.add(path)
        self.errors[path] = line = f"{path} waits: {self._why_no_room}"
        if not self._waiting_is_logged:  # Once: how much is pending changes all the time.
            self._waiting_is_logged = True
            log.info(line)

    def _note_error(self, path: str, line: str) -> None:
        """Log an error when it is new, not at every try."""
        if self.errors.get(path) != line:
            log.warning(line)
        self.errors[path] = line

    def _forget_error(self, path: str) -> None:
        self.errors.pop(path, None)
        self._pauses.pop(path, None)
        self.backlog.discard(path)

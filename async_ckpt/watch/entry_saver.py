"""Saves finished entries as checkpoints, and tries again what failed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import WATCH_RETRY_FIRST_S, WATCH_RETRY_MOST_S, WATCH_ROOM_MOST_S, Config
from ..errors import BacklogError, CheckpointError, SnapshotError, StoreError, os_reason
from ..metadata import SIZE, NoteLog, plain
from ..task.checkpointer import Checkpointer
from . import metadata_file
from .already_saved import WATCHED, AlreadySaved
from .captured import EarlyCapture
from .entry import Entry
from .options import WatchOptions
from .tree import Tree, read_tree

log = logging.getLogger(__package__)


class _Changed(Exception):
    """Somebody wrote to it while it was captured."""


@dataclass
class Failure:
    """Why something is not saved, and when it is tried again."""

    why: str
    #: When the next try may be, by the saver's clock, and the pause before it (seconds).
    at: float = 0.0
    pause_s: float = WATCH_RETRY_FIRST_S
    #: It waits for nothing but room in the backlog.
    needs_room: bool = False


class EntrySaver:
    """Saves entries.

    Parameters
    ----------
    root : str
        The watched directory, absolute.
    config : Config
        Its limits of metadata count.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        root: str,
        options: WatchOptions,
        config: Config,
        already_saved: AlreadySaved,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._checkpointer, self._root, self._options, self._config = checkpointer, root, options, config
        self._already_saved, self._clock = already_saved, clock
        self._notes = NoteLog(log.warning)
        #: How many were saved.
        self.count = 0
        self.is_saving = False
        #: By path, what could not be saved at the last try.
        self.failures: dict[str, Failure] = {}
        #: There was no room in the backlog when it was last asked for.
        self._no_room: Failure | None = None
        self._all_wait_for_room = False

    def may_try(self, path: str) -> bool:
        """Whether it is time for the next try."""
        return path not in self.failures or self._clock() >= self.failures[path].at

    def try_all_again(self) -> None:
        """End all pauses."""
        for failure in filter(None, [*self.failures.values(), self._no_room]):
            failure.at = 0.0

    def begin_round(self) -> None:
        """Several tries follow, the oldest entry first. If there is no room for one, no newer one gets it."""
        self._all_wait_for_room = self._no_room is not None and self._clock() < self._no_room.at

    def save(self, entry: Entry, why: str, *, latest: bool) -> bool:
        """Save an entry, and say ``why`` in the log. False: not now, or it has gone."""
        path, tree = os.path.join(self._root, entry.path), entry.tree
        try:
            return self._save(path, entry.path, tree, why, lambda: read_tree(path) == tree, latest=latest)
        except _Changed:
            return False

    def save_captured(self, relative: str, captured: EarlyCapture, why: str, *, latest: bool) -> bool | None:
        """Save what was captured of an entry. None: not now; False: it is not what was captured any more."""
        if not os.path.lexists(captured.path):
            return False  # Something has cleaned the spool.
        try:
            captured.add_trackers()
            is_saved = self._save(captured.path, relative, captured.tree, why, captured.is_intact, latest=latest)
        except OSError as error:
            self.note_failure(relative, f"{relative} is not saved: {os_reason(error)}")
            return None
        except _Changed:
            return False
        return is_saved or None

    def _save(
        self, path: str, relative: str, tree: Tree, why: str, is_whole: Callable[[], bool], *, latest: bool
    ) -> bool:
        if self._all_wait_for_room and self._no_room is not None:
            self.failures[relative] = Failure(f"{relative} waits: {self._no_room.why}", needs_room=True)
            return False

        def check() -> None:
            if not is_whole():
                raise _Changed

        options = self._options
        self.is_saving = True
        try:
            reference = self._checkpointer.save(
                path, name=options.name, metadata=self._metadata(relative, tree, path),
                latest=latest and options.latest, storage_format=options.storage_format, snapshot=options.snapshot,
                check=check, saved_path=os.path.join(self._root, relative), written_ns=tree.newest_ns,
                wait=False,  # What the trainer writes meanwhile may not stay.
            )  # fmt: skip
        except StoreError as error:
            # It is about one that was saved before. This one is admitted, and a flush tells what becomes of it.
            log.warning(str(error))
            self._already_saved.note(relative, tree, "")
        except BacklogError as error:
            self._note_no_room(relative, str(error))
            return False
        except CheckpointError as error:
            if not isinstance(error, SnapshotError) or os.path.lexists(path):  # Or else its trainer has removed it.
                pause_s = _next_pause_s(self.failures.get(relative), WATCH_RETRY_MOST_S)
                self.note_failure(relative, f"{relative} is not saved: {error}", pause_s)
            return False
        else:
            self._already_saved.note(relative, tree, reference.id)
            log.info(f"{relative} is saved as {reference.id} ({why})")
        finally:
            self.is_saving = False
        self.count += 1
        self._no_room = None
        self.forget(relative)
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
        return {"path": relative, **extra, WATCHED: self._already_saved.mark(relative, tree)}

    # -- what went wrong -------------------------------------------------------------------------------------------

    def note_failure(self, path: str, why: str, pause_s: float = 0.0) -> None:
        """Remember why something is not saved, and log it if that is new. It is tried again after the pause."""
        if path not in self.failures or self.failures[path].why != why:
            log.warning(why)
        self.failures[path] = Failure(why, self._clock() + pause_s, pause_s or WATCH_RETRY_FIRST_S)

    def _note_no_room(self, path: str, why: str) -> None:
        if self._no_room is None:
            log.info(f"{path} waits: {why}")  # Once: how much is pending changes all the time.
        pause_s = _next_pause_s(self._no_room, WATCH_ROOM_MOST_S)
        self._no_room, self._all_wait_for_room = Failure(why, self._clock() + pause_s, pause_s), True
        self.failures[path] = Failure(f"{path} waits: {why}", needs_room=True)

    def forget(self, path: str) -> None:
        """Nothing is wrong with it any more, or it is gone."""
        self.failures.pop(path, None)


def _next_pause_s(failure: Failure | None, most_s: float) -> float:
    return WATCH_RETRY_FIRST_S if failure is None else min(2 * failure.pause_s, most_s)

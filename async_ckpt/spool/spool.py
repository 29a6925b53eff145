"""The spool: checkpoints on this machine's disk, from their capture until they are in the store.

One directory per task (all attempts), 0700::

    spool.json              which task, which store                     written by each attempt's start
    start.<attempt>         which start of the attempt this is (see starts.py)   under flock
    versions.<attempt>      counts saves, a decimal number              under flock, by every saver
    resumed.<attempt>       the checkpoint that the attempt began with  by the task
    card.jsonl              what the card shows (see card/rows.py)      by the agent alone
    loaded                  key of the checkpoint that was loaded last  by the task's processes
    collective.<attempt>.<rank>  counts a rank's collective saves       under the same flock
    launches.<attempt>      whoever started ranks, one a line           under the same flock
    due.<attempt>.<group>   whether ranks save in their next step       by rank 0 (see ranks/decisions.py)
    pidns                   the PID namespace of the task               written by each attempt's start
    savers/<pid>.<pidns>    locked by a saver of another PID namespace while it lives   by it
    data/<pid>-<random>/    snapshots: what ``save()`` captured (<pid>: see saver_names.py)
    data/<pid>-<random>.pack   its small files, one after the other     by savers
    data/<pid>-<random>.early/  what a watch captured early (watch/early_capture.py); perhaps a checkpoint    by savers
    annexes                 further directories like data/, one a line  by savers, appended
    staging/                a record being written, where it needs a name: <pid>-<random>.json   by savers
    ready/<id>.json         ADMITTED. id = <attempt>.<name>.<version>   named so by savers, removed by the agent
    annotations/            what was added to checkpoints' metadata     by savers, removed by the agent
    journal                 what became of them                         by the agent alone (see journal.py)
    recovery                how far a loss would throw the task back    by the agent alone (see recovery.py)
    work/<attempt>-<random>/  the task's ``current.checkpoint.directory``
    agent.lock, agent.pid, agent.log, launch.lock, agent.sock -> agent-<random>.sock    the agent's (see agent/)

The record is the truth and names everything needed: reference, manifest, where the data lies.

What cleans temporary directories may take any of this away: ``upkeep.py`` says what is done about it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Container, Mapping
from dataclasses import asdict
from typing import Any

from .. import layout
from ..capture.copy_speed import CopySpeed
from ..capture.habits import Habits
from ..config import RESTORE_S
from ..errors import SpoolError, os_reason
from ..stores.base import StoreSpec
from ..system.files import remove_tree, wait_for, write_atomically
from .abilities import try_out
from .annotations import Annotations
from .directories import not_ours, private_directory, private_subdirectory, spool_errors
from .records import Records
from .saver_names import note_namespace
from .snapshots import Snapshots
from .spool_directory import FORMAT, SpoolDirectory
from .versions import Versions

log = logging.getLogger(__name__)


class Spool(SpoolDirectory):
    """A task's spool; every process of the task has its own object over the same directory.

    Use ``Spool.create`` in the task and ``Spool.open`` elsewhere. ``records`` are what is admitted, ``versions`` the
    counters, ``snapshots`` the data.
    """

    def __init__(self, directory: str, task: layout.TaskInfo, store: StoreSpec) -> None:
        super().__init__(directory, task, store)
        #: What ``spool.json`` was, and which attempt it named, when it was last read: (inode, mtime in nanoseconds).
        self._identity: tuple[int, int] | None = None
        self._running = task.attempt
        self._gone = False
        self.records = Records(self)
        self.annotations = Annotations(self)
        self.versions, self.snapshots = Versions(self, self.records), Snapshots(self, self.records)

    # -- making and finding one ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: str, task: layout.TaskInfo, store: StoreSpec) -> Spool:
        """Make the spool of a task under ``root``, or take up the one an earlier attempt left.

        Raises
        ------
        SpoolError
            It cannot be made (permissions, full disk), belongs to somebody else, or cannot work on that file system.
        """
        directory = cls.place(root, task, store)
        spool = cls(directory, task, store)
        spool.may_make = True
        with spool_errors("The spool cannot be made", directory):
            private_directory(root)
            for note in try_out(root):
                log.info(note)
            private_subdirectory(directory)
            spool.make_folders()
            note_namespace(directory)
            write_atomically(spool.path("spool.json"), spool._identity_json())
        return spool

    @classmethod
    def find(cls, root: str, task: layout.TaskInfo, store: StoreSpec) -> bool:
        """Whether there is a spool of the task under ``root``, made by this user; also one that has lost files."""
        directory = cls.place(root, task, store)
        try:
            found = [os.lstat(path) for path in (root, directory)]
            if not all(stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() for status in found):
                return False
            return os.path.exists(os.path.join(directory, "spool.json")) or bool(
                os.listdir(os.path.join(directory, "ready"))
            )
        except OSError:
            return False

    @staticmethod
    def place(root: str, task: layout.TaskInfo, store: StoreSpec) -> str:
        """Where the spool of a task is, or would be."""
        node = [task.node] if task.nodes > 1 else []  # Nodes of a gang may share this machine.
        return os.path.join(root, layout.short_hash([task.pathspec, store.root, *node], 16))

    @classmethod
    def open(cls, directory: str, *, attempt: int | None = None) -> Spool:
        """Open an existing spool.

        Raises
        ------
        SpoolError
            There is none, it is somebody else's, or of another version.
        """
        path = os.path.join(directory, "spool.json")
        with spool_errors("The spool cannot be read", path):
            try:
                if os.getuid() not in (os.stat(directory).st_uid, 0):
                    raise not_ours(directory)
                with open(path, "rb") as file:
                    data = json.load(file)
                if data["format"] != FORMAT:
                    raise ValueError(f"format {data['format']}")
                task = layout.TaskInfo(**data["task"])
                store = StoreSpec.from_json(data["store"])
            except (FileNotFoundError, NotADirectoryError) as error:
                hint = "The task that owned it has ended; its checkpoints are in the store"
                raise SpoolError(f"There is no spool: {os_reason(error)}", where=path, hint=hint) from error
            except (ValueError, KeyError, TypeError) as error:
                hint = "Remove the directory, or upgrade"
                raise SpoolError(
                    f"Not a spool of this version of async_ckpt: {error}", where=path, hint=hint
                ) from error
        if attempt is not None:
            task = layout.TaskInfo(**{**asdict(task), "attempt": attempt})
        return cls(directory, task, store)

    def habits(self) -> Habits:
        """What is known of the files that are saved on this disk."""
        path = os.path.join(os.path.dirname(self.directory), "habits")
        return Habits(path, os.path.realpath(self.path("work")), f"{self.task.flow}/{self.task.step}")

    def copy_speed(self) -> CopySpeed:
        """How fast this disk copies."""
        return CopySpeed(os.path.join(os.path.dirname(self.directory), "pace"))

    def check_attempt(self) -> None:
        """For processes that may outlive their task: see that the attempt they belong to still runs (in microseconds).

        What such a process saved into the spool of a later attempt would take versions that the store has already.

        Raises
        ------
        SpoolError
            The attempt has ended: the spool is gone, or it is a later attempt's.
        """
        path, why = self.path("spool.json"), ""
        with spool_errors("The spool cannot be read", path):
            try:
                self._gone = not (os.path.exists(path) or (not self._gone and comes_back(path)))
                status = os.stat(path)
                if (status.st_ino, status.st_mtime_ns) != self._identity:
                    with open(path, "rb") as file:
                        self._running = int(json.load(file)["task"]["attempt"])
                    self._identity = status.st_ino, status.st_mtime_ns
                if self._running != self.task.attempt:
                    why = f"attempt {self._running} runs now"
            except (FileNotFoundError, NotADirectoryError):
                why = "its spool is gone"
            except (ValueError, KeyError, TypeError) as error:
                hint = "Let the step be retried"
                raise SpoolError(f"The spool is damaged: {error}", where=path, hint=hint) from error
        if why:
            pathspec = self.task.pathspec
            raise SpoolError(
                f"Attempt {self.task.attempt} of the task {pathspec} has ended: {why}", where=self.directory,
                hint="Nothing can be saved in its name any more: let the step wait for its subprocesses. "
                f"What it saved is shown by Checkpoint().list(task={pathspec!r})",
            )  # fmt: skip

    # -- the task's part -----------------------------------------------------------------------------------------------

    def new_work_directory(self) -> str:
        """An empty directory for the task to write its checkpoints in; those of earlier attempts are removed."""
        folder = self.path("work")
        with spool_errors("The checkpoint directory cannot be made", folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            for name in os.listdir(folder):
                if not name.startswith(f"{self.task.attempt}-"):
                    remove_tree(os.path.join(folder, name))
            return tempfile.mkdtemp(dir=folder, prefix=f"{self.task.attempt}-")

    def remove_work_directory(self, directory: str) -> None:
        """Remove what ``new_work_directory`` made; one that is gone is no error."""
        with spool_errors("The checkpoint directory cannot be removed", directory):
            remove_tree(directory)

    def note_loaded(self, key: str) -> None:
        """Write down which checkpoint was loaded: what it has may be saved again, and need not be sent then. Nothing
        else depends on it, so a disk that is full is no error.
        """
        with contextlib.suppress(OSError):
            write_atomically(self.path("loaded"), os.fsencode(key))

    def loaded(self) -> str:
        """The key of the checkpoint that was loaded last; empty: none was, or nobody could write it down."""
        with contextlib.suppress(OSError), open(self.path("loaded"), "rb") as file:
            return os.fsdecode(file.read())
        return ""

    def note_resumed(self, reference: Mapping[str, Any]) -> None:
        """Write down with which checkpoint this attempt has begun, for its card."""
        fields = {name: reference.get(name) for name in ("key", "name", "pathspec", "attempt", "created_at")}
        with contextlib.suppress(OSError):
            write_atomically(self.path(f"resumed.{self.task.attempt}"), json.dumps(fields).encode())

    def resumed(self, attempt: int) -> dict[str, Any] | None:
        """What ``note_resumed`` has written down; None: nothing."""
        with contextlib.suppress(OSError, ValueError), open(self.path(f"resumed.{attempt}"), "rb") as file:
            found = json.load(file)
            return found if isinstance(found, dict) else None
        return None

    def attempt_began_ns(self) -> int:
        """When this attempt began, or a little later (wall clock, nanoseconds); 0 in the task's first attempt."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path("work")).st_mtime_ns if self.task.attempt or self._begun_before else 0
        return 0

    # -- the agent's part ----------------------------------------------------------------------------------------------

    def set_aside(self, dispensable: Container[str]) -> str | None:
        """Take the whole spool away by one rename, so that the task's next attempt finds all of it or nothing.

        Parameters
        ----------
        dispensable : container of str
            Ids of records that may go with it.

        Returns
        -------
        str or None
            Where it is now, for ``remove``; None if something else was admitted meanwhile: it is back.
        """
        gone = f"{self.directory}.gone-{os.getpid()}"
        os.rename(self.directory, gone)
        names = os.listdir(os.path.join(gone, "ready"))
        if any(name.removesuffix(".json") not in dispensable for name in names):
            os.rename(gone, self.directory)
            return None
        return gone

    def remove(self, gone: str) -> None:
        """Remove a spool that was set aside, and its annexes."""
        self.snapshots.remove_annexes(gone)
        remove_tree(gone)


def comes_back(path: str) -> bool:
    """Whether something that was removed from a spool is made again, as its agent does while the task runs."""
    try:
        wait_for(lambda: os.path.exists(path), RESTORE_S, path)
    except TimeoutError:
        return False
    return True

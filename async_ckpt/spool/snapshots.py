"""Where the data of snapshots lies, and what becomes of it when whoever captured it has died.

Hard links need the data on the file system of what is saved. Where that is not the spool's, the data lies in an
*annex*, ``<directory>/.async_ckpt-<uid>/<spool's name>-<its inode>/``, and only the record in the spool. The directory
is as near to the mount point as one can be made: whoever removes what was saved, or the folder around it, must not
remove the snapshot with it.

The name of each begins with the number of the process that made it (see ``saver_names.py``).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets

from ..capture.snapshot import remove_snapshot
from ..capture.walk import ANNEX_PREFIX
from ..errors import SpoolError
from ..system.files import remove_tree, try_lock
from ..system.mounts import down_from_mount
from .directories import private_directory
from .records import Admitted, Records
from .spool_directory import SpoolDirectory

#: The ending of a directory for what a watch captures early, and what may become a checkpoint.
_EARLY = ".early"

#: The ending of a buffer, in which the state of a training is staged again and again.
BUFFER = ".buffer"

#: For how many directories it is remembered where their annex is.
_MAX_PARENTS = 1000


class Snapshots:
    """The data of one spool, and its annexes."""

    def __init__(self, spool: SpoolDirectory, records: Records) -> None:
        self._records = records
        self._spool = spool
        #: By parent of what is saved.
        self._annex_for: dict[str, str] = {}
        #: Annexes whose file system does not answer: nobody looks into them.
        self.silent: frozenset[str] = frozenset()

    # -- making ----------------------------------------------------------------------------------------------------

    def new_directory(self, path: str) -> str:
        """A path, not yet made, for the snapshot of ``path``: on its file system if that can be written to.

        Raises
        ------
        SpoolError
            This is root, and the task is another user's: its agent could read nothing of what is saved here.
        """
        self._check_user()
        name = self._new_name()
        # Where no annex can be made, files are copied into the spool instead.
        with contextlib.suppress(OSError, SpoolError):
            device = os.stat(path).st_dev
            parent = os.path.dirname(os.path.realpath(path)) if device != self._device else ""
            if parent and (annex := self._annex(parent, device)):
                return os.path.join(annex, name)
        if not os.path.isdir(self._spool.path("data")):
            self._spool.mend()
        return self._spool.path("data", name)

    def new_early_directory(self, path: str) -> str:
        """The same for what a watch captures early. It is removed after this process has ended."""
        return self.new_directory(path) + _EARLY

    def new_directory_beside(self, path: str) -> str:
        """A path, not yet made, for a snapshot in the folder of a buffer: whatever is mounted how, it can be linked."""
        return os.path.join(os.path.dirname(path), self._new_name())

    def new_buffer(self, folder: str) -> str:
        """A path, not yet made, for a buffer in an annex on the file system of ``folder``. It is removed after this
        process has ended; those of other tasks' dead processes, of which nobody else may know, are removed now.

        Raises
        ------
        OSError, SpoolError
            No annex can be made there, or this is another user than the task's.
        """
        self._check_user()
        folder = os.path.realpath(folder)
        annex = self._annex(folder, os.stat(folder).st_dev)
        if annex is None:
            raise SpoolError("No directory can be made there", where=folder)
        annexes = os.path.dirname(annex)
        for other in os.listdir(annexes):
            _remove_dead_buffers(os.path.join(annexes, other))
        return os.path.join(annex, f"{self._new_name()}{BUFFER}")

    def _new_name(self) -> str:
        return f"{self._spool.saver_names.own()}-{secrets.token_hex(8)}"

    def _check_user(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            owner = os.stat(self._spool.directory).st_uid
            if owner != os.getuid():
                raise SpoolError(
                    f"The task belongs to user {owner}, and this process to user {os.getuid()}: the task's agent could "
                    "not read what is saved here",
                    where=self._spool.directory, hint=f"Save as its user: sudo --user='#{owner}'",
                )  # fmt: skip

    @functools.cached_property
    def _device(self) -> int:
        return os.stat(self._spool.directory).st_dev

    def _annex(self, parent: str, device: int) -> str | None:
        """The annex for what lies in ``parent``; None: there can be none."""
        annex = self._annex_for.get(parent)
        if annex is not None and os.path.isdir(annex):
            return annex
        if len(self._annex_for) >= _MAX_PARENTS:
            self._annex_for.clear()
        for folder in down_from_mount(parent):
            # Not in that one: it may be somebody else's, or another subvolume. In the next, perhaps.
            with contextlib.suppress(OSError, SpoolError):
                if os.stat(folder).st_dev == device:
                    self._annex_for[parent] = annex = self._make_annex(folder)
                    return annex
        return None

    def _make_annex(self, folder: str) -> str:
        annexes = os.path.join(folder, f"{ANNEX_PREFIX}{os.getuid()}")
        # One of an earlier spool of the task has another name.
        annex = os.path.join(
            annexes, f"{os.path.basename(self._spool.directory)}-{os.stat(self._spool.directory).st_ino}"
        )
        private_directory(annexes)
        private_directory(annex)
        if annex not in self._annex_for.values():
            with open(self._spool.path("annexes"), "ab") as file:
                file.write(json.dumps(annex).encode() + b"\n")
        return annex

    def annexes(self, directory: str = "") -> list[str]:
        """All that savers have made, as the spool says that is in ``directory`` now (default: where it always is)."""
        try:
            with open(os.path.join(directory or self._spool.directory, "annexes"), "rb") as file:
                return [annex for annex in dict.fromkeys(json.loads(line) for line in file) if annex not in self.silent]
        except (FileNotFoundError, ValueError):
            return []

    # -- the agent's part ------------------------------------------------------------------------------------------

    def saver_may_live(self, item: Admitted) -> bool:
        """Whether the process may live that captured a checkpoint, and with it the leases that it took."""
        return self._spool.saver_names.may_live(os.path.basename(item.data).partition("-")[0])

    def leftovers(self) -> set[str]:
        """What savers that died in mid-save left: data directories and staged records. Those of processes that live
        stay.
        """
        found: set[str] = set()
        for folder in (self._spool.path("data"), self._spool.path("staging"), *self.annexes()):
            with contextlib.suppress(FileNotFoundError):
                found.update(
                    os.path.join(folder, name)
                    for name in os.listdir(folder)
                    if not self._spool.saver_names.may_live(name.partition("-")[0])
                )
        return found

    def has_dead_buffers(self) -> bool:
        """Whether a process of this task that is dead has left a buffer, in which it may hold much memory."""
        for annex in self.annexes():
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(annex):
                    if name.endswith(BUFFER) and not self._spool.saver_names.may_live(name.partition("-")[0]):
                        return True
        return False

    def sweep(self, leftovers: set[str]) -> list[str]:
        """Remove leftovers; nothing if some record cannot be read, as it may need one of them. Returns what people
        should know.
        """
        if len(self._records.pending()) < len(self._records.ids()):
            return []
        told = []
        for path in leftovers:
            if os.path.isdir(path) and not os.path.islink(path):
                if path.endswith(_EARLY):
                    told += [_early_in_vain(name) for name in os.listdir(path)]
                remove_snapshot(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return told

    def remove_annexes(self, directory: str) -> None:
        """Remove those of the spool that is in ``directory`` now, with all that is in them."""
        for annex in self.annexes(directory):
            remove_tree(annex)
            with contextlib.suppress(OSError):  # Not empty: another task's annex is beside it.
                os.rmdir(os.path.dirname(annex))


def _remove_dead_buffers(annex: str) -> None:
    """Remove the buffers of any task that nobody holds, but for those in snapshots: whoever removes these sees them."""
    with contextlib.suppress(OSError):
        for name in os.listdir(annex):
            if name.endswith(BUFFER):
                path = os.path.join(annex, name)
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    # Its number would say nothing where the task is in another PID namespace.
                    if try_lock(fd) and os.fstat(fd).st_nlink == 1:
                        os.unlink(path)
                finally:
                    os.close(fd)


def _early_in_vain(name: str) -> str:
    return (
        f"{name} was captured, and not known to be finished, when its watch was killed: that capture is dropped. If it "
        "is still where its trainer wrote it, the next watch sees it there"
    )

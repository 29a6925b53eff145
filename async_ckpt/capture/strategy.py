"""How a regular file gets into a snapshot: into the pack, as a hard link with a lease, as a clone or as a copy.

A link takes microseconds whatever the size. Files that cannot be leased now (open for writing, mapped, not ours) are
cloned or copied instead. So are those on file systems where a lease is not known to keep off everybody
(``filesystems.leases_hold``): there a lease may be granted and mean nothing. A clone (``reflink``: xfs, btrfs) shares
the blocks until somebody writes. A copy is safe everywhere, and takes time in proportion to the size.
"""

from __future__ import annotations

import os
import stat
import time

from ..config import Config
from ..errors import SnapshotError, os_reason
from ..manifest import COPY, LINK, FileEntry
from ..system.files import NO_LINK, clone, copy_range
from ..system.filesystems import is_local, leases_hold, uncached
from . import lease
from .open_file import OpenFile, is_quiet
from .pack import Pack
from .safe_links import SafeLinks

#: ``auto``: small files into the pack; others as a link, else a clone, else a copy. ``copy``: the pack, else a copy.
#: ``hardlink``: a link, or an error where none can be made; those that cannot be leased now as a clone, else a copy.
#: ``reflink``: a clone, or an error.
STRATEGIES = ("auto", "hardlink", "reflink", "copy")


class Strategy:
    """Captures the regular files of one snapshot.

    Parameters
    ----------
    name : str
        One of ``STRATEGIES``.
    target : str
        The snapshot's directory.
    lease_budget : int
        How many leases may be taken; files beyond it are copied.
    limit : SafeLinks, optional
        How many bytes of files may be linked; the others are copied as well.
    """

    def __init__(
        self, name: str, target: str, config: Config, *, lease_budget: int = 0, limit: SafeLinks | None = None
    ) -> None:
        self._name, self._budget, self._limit = name, lease_budget, limit
        #: Below this size the pack is cheaper than a link, a lease and its bookkeeping.
        self._pack_below = config.pack_below_bytes if name in ("auto", "copy") else 0
        #: Where small files go.
        self.pack = Pack(target)
        #: Leases taken so far: relative path → descriptor.
        self.leases: dict[str, int] = {}

    def capture_file(self, file: OpenFile) -> FileEntry:
        """Make ``file.target`` (or the pack) hold what the file holds now. One with ``how=LINK`` keeps its descriptor.

        Raises
        ------
        OSError, SnapshotError
            It could not; whatever was made is removed by the caller.
        """
        size = file.status.st_size
        if size < self._pack_below:
            if file.is_local:
                return self.pack.add(file.path, file.status, file.fd)
            with uncached(file.fd, file.on()) as fd:
                return self.pack.add(file.path, file.status, fd)
        if self._name not in ("auto", "hardlink") or not self._can_lease(file) or len(self.leases) >= self._budget:
            return self._copy(file)
        if self._limit is not None and not self._limit.may_link(file.path, size):
            began = time.monotonic()
            entry = self._copy(file)
            self._limit.note_copy(entry.size, time.monotonic() - began)
            return entry
        return self._link(file) or self._copy(file)

    def _can_lease(self, file: OpenFile) -> bool:
        kind = file.on()
        if not leases_hold(kind):
            self._check_that_it_may_be_copied(file, f"its file system ({kind}) may let somebody write to it unnoticed")
            return False
        return True

    def _check_that_it_may_be_copied(self, file: OpenFile, reason: str) -> None:
        """``reason``: why no link can be made of it at all."""
        if self._name == "hardlink":
            raise SnapshotError(
                f"Cannot capture {file.full} as a hard link: {reason}", where=file.full,
                hint="Use snapshot='auto', or put it and the spool on one ext4, xfs, btrfs or tmpfs",
            )  # fmt: skip

    def _link(self, file: OpenFile) -> FileEntry | None:
        """Link and lease a file; None where that cannot be now."""
        target = file.target
        try:
            os.link(file.full, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self._check_that_it_may_be_copied(file, os_reason(error))
            return None
        file.leased_s = time.monotonic()
        if not lease.take(file.fd):
            os.unlink(target)
            return None
        # Read under the lease: nobody can have written between this and the capture.
        status = os.stat(target, follow_symlinks=False)
        if status.st_ino != file.status.st_ino:
            # Another file was renamed to this path since it was opened: that one holds no lease.
            lease.release(file.fd)
            os.unlink(target)
            return None
        self.leases[file.path] = file.fd
        mode = stat.S_IMODE(status.st_mode)
        return FileEntry(file.path, status.st_size, mode, LINK, status.st_ino, status.st_mtime_ns)

    def _copy(self, file: OpenFile) -> FileEntry:
        """Clone or copy a file, up to the size it was opened with."""
        status = file.status
        target_fd = os.open(file.target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if self._name != "copy" and clone(file.fd, target_fd, status.st_size):
                # What is mapped was written back for it: each later write through a mapping changes the file's time.
                file.sure = is_local(file.on())
            elif self._name == "reflink" and status.st_size:
                raise SnapshotError(
                    f"Cannot capture {file.full}: its file system ({file.on()}) cannot clone files (reflink)",
                    where=file.full, hint="Use snapshot='auto', or put the spool on the same xfs or btrfs",
                )  # fmt: skip
            else:
                file.sure = is_quiet(file)
                with uncached(file.fd, file.on()) as fd:
                    copy_range(fd, target_fd, status.st_size)
            size = os.fstat(target_fd).st_size
        finally:
            os.close(target_fd)
        return FileEntry(file.path, size, stat.S_IMODE(status.st_mode), COPY, mtime_ns=status.st_mtime_ns)

    def forget(self, path: str) -> None:
        """The file of this relative path is going to be captured once more, or is gone."""
        fd = self.leases.pop(path, -1)
        if fd >= 0:
            lease.release(fd)

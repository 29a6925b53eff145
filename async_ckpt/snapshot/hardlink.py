"""``hardlink`` guarded by leases, and ``auto``, which uses it where it pays.

A link takes microseconds whatever the size. Files that cannot be leased now (open for writing, mapped, not ours) are
cloned or copied instead. So are those on file systems where a lease is not known to keep off everybody
(``filesystems.leases_hold``): there a lease may be granted and mean nothing.
"""

from __future__ import annotations

import os
import stat
import time

from ..errors import SnapshotError, os_reason
from ..files import NO_LINK
from ..filesystems import leases_hold
from ..manifest import LINK, FileEntry
from . import lease
from .copying import Copy, copy_file
from .packing import Pack
from .stillness import OpenFile


class HardLink:
    """Links every file and takes a lease on it.

    Parameters
    ----------
    budget : int
        How many leases may be taken; files beyond it are copied.
    """

    pack: Pack | None = None

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._leases: dict[str, int] = {}

    def capture_file(self, file: OpenFile) -> FileEntry:
        entry, reason = self.try_link(file)
        if entry is None and reason:
            raise SnapshotError(
                f"Cannot capture {file.source} as a hard link: {reason}", where=file.source,
                hint="Use snapshot='auto', or put it and the spool on one ext4, xfs, btrfs or tmpfs",
            )  # fmt: skip
        return entry or copy_file(file, reflink=True)

    def try_link(self, file: OpenFile) -> tuple[FileEntry | None, str]:
        """Link and lease one file: (entry, ""), or (None, why no link can be made), or (None, "") for no lease now."""
        kind = file.on()
        if not leases_hold(kind):
            return None, f"its file system ({kind}) may let somebody write to it without a word"
        if len(self._leases) >= self._budget:
            return None, ""
        target = file.target
        try:
            os.link(file.source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno in NO_LINK:
                return None, os_reason(error)
            raise
        file.leased_s = time.monotonic()
        if not lease.take(file.fd):
            os.unlink(target)
            return None, ""
        # Facts are read under the lease: nobody can have written between them and the capture.
        status = os.stat(target, follow_symlinks=False)
        if status.st_ino != file.status.st_ino:
            # Another file was renamed to this path since it was opened: that one holds no lease.
            lease.release(file.fd)
            os.unlink(target)
            return None, ""
        self._leases[file.path] = file.fd
        mode = stat.S_IMODE(status.st_mode)
        return FileEntry(file.path, status.st_size, mode, LINK, status.st_ino, status.st_mtime_ns), ""

    def forget(self, path: str) -> None:
        fd = self._leases.pop(path, -1)
        if fd >= 0:
            lease.release(fd)

    def finish(self) -> None:
        """Nothing is held back."""

    def leases(self) -> dict[str, int]:
        return self._leases


class Auto:
    """Small files: into the pack. Others: hard link + lease, else reflink, else copy.

    Parameters
    ----------
    links : HardLink
        For what the pack does not take.
    copies : Copy
        For small files, and where no link can be made.
    pack_below_bytes : int
        Below this size the pack is cheaper than a link, a lease and its bookkeeping.
    """

    def __init__(self, links: HardLink, copies: Copy, pack_below_bytes: int) -> None:
        self._links, self._copies, self._pack_below = links, copies, pack_below_bytes
        self.pack: Pack | None = copies.pack

    def capture_file(self, file: OpenFile) -> FileEntry:
        if file.status.st_size >= self._pack_below:
            entry, _ = self._links.try_link(file)
            if entry is not None:
                return entry
        return self._copies.capture_file(file)

    def forget(self, path: str) -> None:
        self._links.forget(path)

    def finish(self) -> None:
        self._copies.finish()

    def leases(self) -> dict[str, int]:
        return self._links.leases()

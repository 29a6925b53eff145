"""``hardlink`` guarded by leases, and ``auto``, which uses it where it pays.

A link takes microseconds whatever the size. Files that cannot be leased now (open for writing, mapped, not ours) are
cloned or copied instead. So are those on file systems where a lease is not known to keep off everybody
(``filesystems.leases_hold``): there a lease may be granted and mean nothing.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Callable
from typing import Protocol

from ..errors import SnapshotError, os_reason
from ..manifest import LINK, FileEntry
from ..system.files import NO_LINK
from ..system.filesystems import leases_hold
from . import lease
from .base import FileStrategy
from .copying import Copy, copy_file
from .open_file import OpenFile


class LinkLimit(Protocol):
    """How many bytes of a capture may be links."""

    def may_link(self, path: str, size: int) -> bool:
        """Whether one more file, of so many bytes, may be one; it counts then."""

    def note_copy(self, size: int, seconds: float) -> None:
        """One that may not was copied in that time."""


class HardLink(FileStrategy):
    """Links every file and takes a lease on it.

    Parameters
    ----------
    budget : int
        How many leases may be taken; files beyond it are copied.
    limit : LinkLimit, optional
        How many bytes of files may be linked; the others are copied as well.
    """

    def __init__(self, budget: int, limit: LinkLimit | None = None) -> None:
        self._budget, self._limit = budget, limit
        self._is_beyond = False
        self._leases: dict[str, int] = {}

    def capture_file(self, file: OpenFile) -> FileEntry:
        entry, reason = self.try_link(file)
        if entry is None and reason:
            raise SnapshotError(
                f"Cannot capture {file.full} as a hard link: {reason}", where=file.full,
                hint="Use snapshot='auto', or put it and the spool on one ext4, xfs, btrfs or tmpfs",
            )  # fmt: skip
        return entry or self.copy(functools.partial(copy_file, file, reflink=True))

    def try_link(self, file: OpenFile) -> tuple[FileEntry | None, str]:
        """Link and lease one file: (entry, ""), or (None, why no link can be made), or (None, "") for no lease now."""
        kind = file.on()
        if not leases_hold(kind):
            return None, f"its file system ({kind}) may let somebody write to it without a word"
        if len(self._leases) >= self._budget or not self._is_within(file):
            return None, ""
        target = file.target
        try:
            os.link(file.full, target, follow_symlinks=False)
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

    def _is_within(self, file: OpenFile) -> bool:
        self._is_beyond = self._limit is not None and not self._limit.may_link(file.path, file.status.st_size)
        return not self._is_beyond

    def copy(self, copy: Callable[[], FileEntry]) -> FileEntry:
        """Copy the file that could not be linked right now."""
        if not self._is_beyond or self._limit is None:
            return copy()
        began = time.monotonic()
        entry = copy()
        self._limit.note_copy(entry.size, time.monotonic() - began)
        return entry

    def forget(self, path: str) -> None:
        fd = self._leases.pop(path, -1)
        if fd >= 0:
            lease.release(fd)

    def leases(self) -> dict[str, int]:
        return self._leases


class Auto(FileStrategy):
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
        self.pack = copies.pack

    def capture_file(self, file: OpenFile) -> FileEntry:
        if file.status.st_size >= self._pack_below:
            entry, _ = self._links.try_link(file)
            return entry or self._links.copy(functools.partial(self._copies.capture_file, file))
        return self._copies.capture_file(file)

    def forget(self, path: str) -> None:
        self._links.forget(path)

    def finish(self) -> None:
        self._copies.finish()

    def leases(self) -> dict[str, int]:
        return self._links.leases()

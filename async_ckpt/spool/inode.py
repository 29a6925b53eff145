"""Telling whether a file on this disk is, byte for byte, one that was seen earlier."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import secrets

from ..system.filesystems import kind_at, statx, times_tell
from .stored import Inode

_OLD_NS = 10**18


def identify(path: str) -> Inode | None:
    """The inode at ``path`` (a symbolic link is not followed); None where there is none, or its birth is not known."""
    # One call: the path may become another file between two.
    found = statx(path)
    if found is None:
        return None
    return Inode(os.makedev(*found.dev), found.ino, found.size, found.mtime.ns, found.btime.ns)


def shows_writes(folder: str) -> bool:
    """Whether each write through a new shared mapping changes a file's mtime on the file system of ``folder``.

    Only where it is known that every write is one of this kernel's; and it is tried, as no interface tells. File
    systems in memory (tmpfs) map pages writable that were only read, and never hear of the writes.
    """
    try:
        return times_tell(kind_at(folder)) and _shows_writes(os.stat(folder).st_dev, folder)
    except OSError:
        return False


@functools.lru_cache(maxsize=64)
def _shows_writes(device: int, folder: str) -> bool:
    # Named like a snapshot, so that what a killed process leaves is swept away.
    path = os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(8)}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"0")
        os.utime(fd, ns=(_OLD_NS, _OLD_NS))
        with mmap.mmap(fd, 1) as mapped:
            first = mapped[0]
            mapped[0] = first + 1
        return os.fstat(fd).st_mtime_ns != _OLD_NS
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)

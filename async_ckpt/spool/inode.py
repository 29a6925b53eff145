"""Telling whether a file on this disk is, byte for byte, one that was seen earlier."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import secrets
from typing import Any

from .stored import Inode

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
#: STATX_BASIC_STATS | STATX_BTIME
_STATX = 0xFFF
_OLD_NS = 10**18


class _Timestamp(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("reserved", ctypes.c_int32))

    @property
    def ns(self) -> int:
        return int(self.sec) * 10**9 + int(self.nsec)


class _Statx(ctypes.Structure):
    """``struct statx`` of linux/stat.h."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("unread", ctypes.c_uint8 * 28),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes", ctypes.c_uint64),
        ("atime", _Timestamp),
        ("btime", _Timestamp),
        ("ctime", _Timestamp),
        ("mtime", _Timestamp),
        ("rdev", ctypes.c_uint32 * 2),
        ("dev", ctypes.c_uint32 * 2),
        ("reserved", ctypes.c_uint8 * 112),
    )


def identify(path: str) -> Inode | None:
    """The inode at ``path`` (a symbolic link is not followed); None where there is none, or its birth is not known."""
    statx, found = _statx(), _Statx()
    # One call: the path may become another file between two.
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX, ctypes.byref(found)):
        return None
    if found.mask & _STATX != _STATX:
        return None
    return Inode(os.makedev(*found.dev), found.ino, found.size, found.mtime.ns, found.btime.ns)


@functools.cache
def _statx() -> Any:
    """The C library's function; None where it has none."""
    return getattr(ctypes.CDLL(None), "statx", None)


def shows_writes(folder: str) -> bool:
    """Whether each write through a new shared mapping changes a file's mtime on the file system of ``folder``.

    It is tried, as no interface tells. File systems in memory (tmpfs) map pages writable that were only read, and
    never hear of the writes.
    """
    try:
        return _shows_writes(os.stat(folder).st_dev, folder)
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

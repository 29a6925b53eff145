"""Which file system a file is on, and what of it can be trusted there.

It is asked for each file by its open descriptor. Neither the path nor ``st_dev`` tells it, because of subvolumes,
overlays and bind mounts. ``docs/filesystems.md`` says what was tried on which, and how.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

#: ``f_type`` of statfs(2), as far as somebody may want to read its name in an error.
_NAMES = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs", 0x794C7630: "overlayfs",
    0x65735546: "FUSE", 0x6969: "NFS", 0xFF534D42: "CIFS", 0xFE534D42: "SMB", 0x517B: "SMB", 0x01021997: "9p",
    0x00C36400: "Ceph", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS", 0x2FC12FC1: "ZFS", 0xCA451A4E: "bcachefs",
    0xF2F52010: "f2fs", 0x4D44: "vfat", 0x2011BAB0: "exfat", 0x858458F6: "ramfs", 0x5346544E: "ntfs",
    0xF15F: "ecryptfs", 0x19830326: "BeeGFS", 0x73717368: "squashfs", 0x9660: "iso9660",
}  # fmt: skip

#: A lease is of the inode that every writer opens or has mapped, whatever the path. (ext2 to ext4 have one number.)
_LEASES_HOLD = frozenset({"ext4", "xfs", "btrfs", "tmpfs"})

#: A write through a mapping that was made since changes the mtime. Not tmpfs: it never hears of such a write.
_TIMES_TELL = frozenset({"ext4", "xfs", "btrfs"})

#: Nobody but this machine's kernel changes files there: attributes and cached content are what is.
_LOCAL = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "overlayfs", "ramfs", "f2fs", "bcachefs", "ZFS", "vfat", "exfat"})

#: With times of its own for whoever writes after somebody has looked (Linux 6.13); before, they are those of the last
#: tick of the kernel's clock.
_FINE_TIMES_SINCE = (6, 13)
#: The longest tick there is, twice; and the same for file systems that keep whole seconds (ext4 with inodes of 128
#: bytes).
_TICK_NS, _SECONDS_NS = 20_000_000, 2_000_000_000

#: What FUSE and NFS call a file that was removed while somebody has it open.
_REMOVED = re.compile(r"\.(fuse_hidden|nfs)[0-9a-fA-F]{16,}")

_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW, _AT_FORCE_SYNC, _AT_FDCWD = 0x1000, 0x100, 0x2000, -100
#: STATX_BASIC_STATS | STATX_BTIME
_STATX_ALL = 0xFFF
_STATX_BASIC = 0x7FF


def kind_of(what: int | str) -> str:
    """The kind of file system that an open file is on, or what stands at a path (a symbolic link is followed):
    ``"ext4"``, or its number where it has no name here.
    """
    file = what if isinstance(what, int) else os.fsencode(what)
    function = _function("fstatfs" if isinstance(what, int) else "statfs")
    # The struct has about 120 bytes and begins with the type, a long wherever Linux has 64 bits.
    buffer = (ctypes.c_long * 32)()
    if function is None or function(file, buffer):
        return "unknown"
    number = buffer[0] & 0xFFFFFFFF
    return _NAMES.get(number) or hex(number)


@functools.cache
def _function(name: str) -> Any:
    """A function of the C library; None where its structs are not Linux's."""
    return getattr(ctypes.CDLL(None, use_errno=True), name, None) if sys.platform == "linux" else None


def leases_hold(kind: str) -> bool:
    """Whether a lease keeps off every writer: only where that was tried."""
    return kind in _LEASES_HOLD


def times_tell(kind: str) -> bool:
    """Whether no write goes by without a new mtime, once nobody has the file open for writing or mapped."""
    return kind in _TIMES_TELL


def is_local(kind: str) -> bool:
    """Whether no other machine, and no other mount, changes files behind this kernel's back."""
    return kind in _LOCAL


@functools.cache
def _fine_times() -> bool:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= _FINE_TIMES_SINCE


def shows_next_write(kind: str, status: os.stat_result, looked_ns: int) -> bool:
    """Whether each write after a look has another time than what was written before it.

    Parameters
    ----------
    kind : str
        Of the file system.
    status : os.stat_result
        What the look has found.
    looked_ns : int
        When it was taken, or before (wall clock, nanoseconds).
    """
    # Nobody sets this time: it has no fraction only where the file system keeps none.
    if not status.st_ctime_ns % 10**9:
        return max(status.st_mtime_ns, status.st_ctime_ns) < looked_ns - _SECONDS_NS
    return (kind in _LEASES_HOLD and _fine_times()) or status.st_mtime_ns < looked_ns - _TICK_NS


def status_of(what: int | str, kind: str) -> os.stat_result:
    """Of an open file, or of what stands at a path now (a link is not followed).

    Raises
    ------
    OSError
    """
    # Where others may change it the file system is made to ask them, and has it in its cache then.
    if isinstance(what, int):
        if kind not in _LOCAL:
            _statx(what, "", _AT_EMPTY_PATH | _AT_FORCE_SYNC, _STATX_BASIC)
        return os.fstat(what)
    if kind not in _LOCAL:
        _statx(_AT_FDCWD, what, _AT_SYMLINK_NOFOLLOW | _AT_FORCE_SYNC, _STATX_BASIC)
    return os.lstat(what)


@contextlib.contextmanager
def uncached(fd: int, kind: str) -> Iterator[int]:
    """An open file, to be read as it is now: where it is not this kernel alone that has it, reads ask who has.

    Where that cannot be had, what is cached is given up before. That need not help: what is mapped or in use stays.
    """
    with contextlib.ExitStack() as stack:
        if kind not in _LOCAL:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with contextlib.suppress(OSError):
                direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
                stack.callback(os.close, direct)
                os.pread(direct, 1, 0)  # An error where whole blocks have to be read.
                fd = direct
        yield fd


def is_removed(name: str, folder: str) -> bool:
    """Whether a file in a folder has been removed, and has this name until nobody has it open any more."""
    return bool(_REMOVED.fullmatch(name)) and kind_of(folder) not in _LOCAL


class _Timestamp(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("reserved", ctypes.c_int32))

    @property
    def ns(self) -> int:
        return int(self.sec) * 10**9 + int(self.nsec)


class _Statx(ctypes.Structure):
    """``struct statx`` of linux/stat.h."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("unread", ctypes.c_uint8 * 16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _Timestamp),
        ("btime", _Timestamp),
        ("ctime", _Timestamp),
        ("mtime", _Timestamp),
        ("rdev", ctypes.c_uint32 * 2),
        ("dev", ctypes.c_uint32 * 2),
        ("reserved", ctypes.c_uint8 * 112),
    )


def statx(path: str) -> _Statx | None:
    """All facts of what stands at ``path`` (no link is followed), its birth included; None: not all are known."""
    found = _statx(_AT_FDCWD, path, _AT_SYMLINK_NOFOLLOW, _STATX_ALL)
    return found if found is not None and found.mask & _STATX_ALL == _STATX_ALL else None


def _statx(fd: int, path: str, flags: int, mask: int) -> _Statx | None:
    function, found = _function("statx"), _Statx()
    if function is None or function(fd, os.fsencode(path), flags, mask, ctypes.byref(found)):
        return None
    return found

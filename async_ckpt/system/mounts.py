"""Where on its file system a directory lies."""

from __future__ import annotations

import os
import re

_MOUNTS = "/proc/self/mountinfo"
#: What the types of file systems begin with that a server, or a process, may hold up for ever.
_REMOTE = ("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "fuse", "glusterfs", "gpfs", "lustre", "nfs", "smb")


def down_from_mount(path: str) -> list[str]:
    """The directories from the mount point of ``path`` (real and absolute) down to ``path`` itself. Where nobody tells
    the mount points: itself alone.

    What is bound to another place is a mount of its own, though the device is the same: links do not cross it either.
    """
    mount = _mount_point(path)
    folders = [path]
    while folders[-1] != mount:
        folders.append(os.path.dirname(folders[-1]))
    return folders[::-1]


def mounts_below(path: str) -> list[str]:
    """The mount points in a directory (real and absolute), itself not among them."""
    return sorted(point for point in set(all_mounts()) if point != path and point.startswith(f"{path.rstrip('/')}/"))


def _mount_point(path: str) -> str:
    points = all_mounts()
    return max((point for point in points if f"{path}/".startswith(f"{point.rstrip('/')}/")), key=len, default=path)


def all_mounts() -> list[str]:
    """All mount points; none where nobody tells."""
    return [point for point, _ in _mounts()]


def local_mounts() -> list[str]:
    """The mount points of file systems that need no server to answer, as far as their types say."""
    return [point for point, kind in _mounts() if not kind.startswith(_REMOTE)]


def _mounts() -> list[tuple[str, str]]:
    """Mount points and types."""
    try:
        with open(_MOUNTS, "rb") as file:
            lines = [line.partition(b" - ") for line in file]
    except OSError:
        return []
    return [
        (os.fsdecode(_unescaped(before.split(b" ")[4])), os.fsdecode(after.split(b" ")[0]))
        for before, _, after in lines
    ]


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)

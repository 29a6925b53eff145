"""Where on its file system a directory lies."""

from __future__ import annotations

import os
import re

_MOUNTS = "/proc/self/mountinfo"


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
    return sorted(point for point in set(_mounts()) if point != path and point.startswith(f"{path.rstrip('/')}/"))


def _mount_point(path: str) -> str:
    points = _mounts()
    return max((point for point in points if f"{path}/".startswith(f"{point.rstrip('/')}/")), key=len, default=path)


def _mounts() -> list[str]:
    """All mount points; none where nobody tells."""
    try:
        with open(_MOUNTS, "rb") as file:
            return [os.fsdecode(_unescaped(line.split(b" ")[4])) for line in file]
    except OSError:
        return []


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)

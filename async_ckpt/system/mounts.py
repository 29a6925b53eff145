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


def kind_of(path: str) -> str:
    """The type of the file system that ``path`` is on; empty where nobody tells."""
    path = os.path.realpath(path)
    return _mounts().get(_mount_point(path), "")


def mounts_below(path: str) -> list[str]:
    """The mount points in a directory (real and absolute), itself not among them."""
    return sorted(point for point in _mounts() if point != path and point.startswith(f"{path.rstrip('/')}/"))


def _mount_point(path: str) -> str:
    points = _mounts()
    return max((point for point in points if f"{path}/".startswith(f"{point.rstrip('/')}/")), key=len, default=path)


def _mounts() -> dict[str, str]:
    """Mount points, and the type of the file system that was mounted there last."""
    try:
        with open(_MOUNTS, "rb") as file:
            fields = [line.split(b" ") for line in file]
    except OSError:
        return {}
    return {os.fsdecode(_unescaped(line[4])): os.fsdecode(line[line.index(b"-") + 1]) for line in fields}


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)

"""Who has a file open for writing.

A read lease would tell (``capture/lease.py``), for other users' processes as well. But whoever opens the file in that
moment is held by the kernel until we let go, and we need the interpreter's lock for that: a trainer in this process
that opens files in C++ while it holds that lock would wait for the kernel to break the lease, 45 s. So /proc is read.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection

Inode = tuple[int, int]

#: A line of /proc/<pid>/maps, of what is mapped shared and writable: device, inode and path.
_SHARED = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ rw.s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([1-9][0-9]*)\s*(.*)$", re.MULTILINE
)
#: What can be mapped and is no file that anybody saves.
_NO_FILES = (b"/dev/nvidia", b"/dev/dri", b"/memfd:", b"/SYSV", b"socket:", b"anon_inode:")


def open_for_writing(
    files: Collection[Inode], pids: Collection[int] | None = None, *, mapped: bool = True
) -> dict[Inode, int]:
    """Those of the files, (device, inode), that a process of this user on this machine has open for writing, or mapped
    so that it writes through memory; with one such process each.

    Processes whose descriptors may not be read (other users', unless this is root; other containers') are not seen.
    ``pids``: only these are looked at. ``mapped``: what is mapped counts; to ask takes much longer.
    """
    wanted, found = set(files), dict[Inode, int]()
    if not wanted:
        return found
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if pids is None else pids:
        with contextlib.suppress(OSError):  # It ended, or is not ours to look into.
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{number}")
                    inode = (status.st_dev, status.st_ino)
                    if inode in wanted and inode not in found and _is_writable(f"/proc/{pid}/fdinfo/{number}"):
                        found[inode] = pid
            if mapped:
                found |= dict.fromkeys(_mapped(f"/proc/{pid}/maps") & wanted, pid)
    return found


def _is_writable(fdinfo: str) -> bool:
    with open(fdinfo, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags:"):
                flags = int(line.split()[1], 8)
                return flags & os.O_ACCMODE != os.O_RDONLY and not flags & getattr(os, "O_PATH", 0)
    return False


def _mapped(maps: str) -> set[Inode]:
    """Files that are mapped shared and writable: such a mapping outlives the descriptor.

    On overlay file systems and btrfs the kernel names other devices here than stat does: so the path is asked as well.
    """
    found, paths = set(), set()
    # Some programs have tens of thousands of mappings; few of them are such.
    with open(maps, "rb") as file:
        for mapping in set(_SHARED.findall(file.read())):
            major, minor, inode, path = mapping
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
            paths.add(path)
    for path in paths:
        if not path.startswith(_NO_FILES):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found.add((status.st_dev, status.st_ino))
    return found

"""Which files of a checkpoint the store has already, from an earlier one: they are copied there, not sent again.

Sound, because of the leases: while one is taken nobody has the file open for writing, or mapped so that writes could
come later. So between two captures by link, whoever wrote to the inode opened or mapped it in between, and the file
system gave it a new mtime. What could fool that is left out:

- A write right after the first capture may get the same mtime, as the clock of file systems ticks in steps: the mtime
  must have been older than the capture by ``RACY_NS`` (git does the same with its index).
- A program may set the mtime back to what it was, always to the same time as a rule (reproducible archives): a time
  before the file's own birth, or one without nanoseconds, is one that somebody set.
- A number of an inode is given to another file later: the time of birth tells.
- File systems in memory do not see each write to a mapping: there nothing is taken for unchanged.

Copies, clones and packed files are inodes of the snapshot's own, and say nothing about the trainer's.
"""

from __future__ import annotations

import os

from ..manifest import LINK
from ..spool.inode import identify, shows_writes
from ..spool.spool import Admitted
from ..spool.stored import Inode, StoredFile, StoredFiles

#: Smallest file in bytes for which the store is asked for a copy: below, the request takes as long as the bytes.
MIN_BYTES = 1 << 20

#: By how much a file must have been older than its capture, in nanoseconds: ten ticks of the slowest kernel's clock.
RACY_NS = 100_000_000


def recognizable(item: Admitted) -> dict[str, Inode]:
    """Files of a checkpoint that a later one may find unchanged, or that may be unchanged themselves, by path.

    Asked before the upload: what is made private after that was this inode when it was captured.
    """
    if item.reference["storage_format"] != "files":
        return {}
    entries = [entry for entry in item.manifest.files if entry.how == LINK and entry.size >= MIN_BYTES]
    if not entries or not shows_writes(os.path.dirname(item.data)):
        return {}
    found = {}
    for entry in entries:
        inode = identify(item.file(entry.path))
        captured = (entry.ino, entry.size, entry.mtime_ns)
        if inode is not None and (inode.ino, inode.size, inode.mtime_ns) == captured and not _was_set(inode):
            found[entry.path] = inode
    return found


def _was_set(inode: Inode) -> bool:
    """Whether the mtime cannot be that of a write."""
    return inode.mtime_ns < inode.btime_ns or inode.mtime_ns % 1000 == 0


def is_settled(inode: Inode, captured_ns: int) -> bool:
    """Whether a write after the capture must have changed the mtime."""
    return inode.mtime_ns + RACY_NS <= captured_ns


def unchanged(inodes: dict[str, Inode], stored: StoredFiles) -> dict[str, StoredFile]:
    """Those of the files that the store has, with the place, by path."""
    found = {path: stored.find(inode) for path, inode in inodes.items()}
    return {path: file for path, file in found.items() if file is not None}

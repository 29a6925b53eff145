"""Which files of a checkpoint the store has already, from an earlier one: they are copied there, not sent again.

A file is known by its *fingerprint*: inode, size and times. That it is unchanged since an earlier capture is sound
because of the leases: while one is taken, nobody has the file open for writing, or mapped so that writes could come
later. So between two captures by link, whoever wrote to the inode opened or mapped it in between, and the file system
gave it a new mtime. What could fool that is left out:

- A write right after the first capture may get the same mtime, as the clock of file systems ticks in steps: the mtime
  must have been older than the capture by ``RACY_NS`` (git does the same with its index).
- A program may set the mtime back to what it was, always to the same time as a rule (reproducible archives): a time
  before the file's own birth, or one without nanoseconds, is one that somebody set.
- A number of an inode is given to another file later: the time of birth tells.
- Where a write to a mapping may leave the mtime as it is (file systems in memory, and all that were not tried), nothing
  is taken for unchanged.

Copies, clones and packed files are inodes of the snapshot's own, and say nothing about the trainer's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..manifest import LINK
from ..stores.base import Stored
from ..system.filesystems import kind_of, statx, times_tell
from .records import Admitted

#: Smallest file in bytes for which the store is asked for a copy: below, the request takes as long as the bytes.
MIN_BYTES = 1 << 20

#: By how much a file must have been older than its capture, in nanoseconds: ten ticks of the slowest kernel's clock.
RACY_NS = 100_000_000

#: So many files are remembered, the last ones: a few MiB of memory.
MAX_STORED = 10_000


class Fingerprint(NamedTuple):
    """A file's identity and when it was last written to: device, inode number, size in bytes, times in nanoseconds.

    The time of birth tells a file from an earlier one that had the same number.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    btime_ns: int

    @classmethod
    def of(cls, path: str) -> Fingerprint | None:
        """Of the file at ``path`` (a symbolic link is not followed); None where there is none, or its birth is not
        known.
        """
        # One call: the path may become another file between two.
        found = statx(path)
        if found is None:
            return None
        return cls(os.makedev(*found.dev), found.ino, found.size, found.mtime.ns, found.btime.ns)

    def shows_writes_after(self, captured_ns: int) -> bool:
        """Whether a write after a capture at that time must have changed the mtime."""
        return self.mtime_ns + RACY_NS <= captured_ns

    @property
    def was_set(self) -> bool:
        """Whether the mtime cannot be that of a write."""
        return self.mtime_ns < self.btime_ns or self.mtime_ns % 1000 == 0


class StoredFile(NamedTuple):
    """A file of a committed checkpoint: its object's key, and what is known of that."""

    key: str
    stored: Stored


class StoredFiles:
    """Files of committed checkpoints of one task, by fingerprint; each at the place where it was stored last.

    Parameters
    ----------
    limit : int
        How many are remembered.
    """

    def __init__(self, limit: int = MAX_STORED) -> None:
        self._limit = limit
        #: By device and number of the inode: a file that was written to, or another one of that number, replaces it.
        self._files: dict[tuple[int, int], tuple[Fingerprint, StoredFile]] = {}

    def add(self, fingerprint: Fingerprint, file: StoredFile) -> None:
        """Remember a file; what was known of its inode number is forgotten."""
        number = (fingerprint.dev, fingerprint.ino)
        self._files.pop(number, None)  # It comes last from now on.
        self._files[number] = fingerprint, file
        if len(self._files) > self._limit:
            del self._files[next(iter(self._files))]

    def find(self, fingerprint: Fingerprint) -> StoredFile | None:
        """Where the store has the content of this very file, unchanged since."""
        known, file = self._files.get((fingerprint.dev, fingerprint.ino), (None, None))
        return file if known == fingerprint else None

    def among(self, fingerprints: dict[str, Fingerprint]) -> dict[str, StoredFile]:
        """Those of some files that the store has, with the place, by path."""
        found = {path: self.find(fingerprint) for path, fingerprint in fingerprints.items()}
        return {path: file for path, file in found.items() if file is not None}

    def __iter__(self) -> Iterator[tuple[Fingerprint, StoredFile]]:
        """Oldest first."""
        return iter(self._files.values())

    def __len__(self) -> int:
        return len(self._files)


def fingerprints(item: Admitted) -> dict[str, Fingerprint]:
    """Files of a checkpoint that a later one may find unchanged, or that may be unchanged themselves, by path.

    Asked before the upload: what is made private after that was this inode when it was captured.
    """
    if item.reference["storage_format"] != "files":
        return {}
    entries = [entry for entry in item.manifest.files if entry.how == LINK and entry.size >= MIN_BYTES]
    if not entries or not times_tell(kind_of(os.path.dirname(item.data))):
        return {}
    found = {}
    for entry in entries:
        now = Fingerprint.of(item.file(entry.path))
        captured = (entry.ino, entry.size, entry.mtime_ns)
        if now is not None and (now.ino, now.size, now.mtime_ns) == captured and not now.was_set:
            found[entry.path] = now
    return found

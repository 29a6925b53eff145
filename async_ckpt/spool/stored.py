"""Where the store holds files that may be saved again unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: So many files are remembered, the last ones: a few MiB of memory.
MAX_STORED = 10_000


class Inode(NamedTuple):
    """A file's identity and when it was last written to: device, number, size in bytes, times in nanoseconds.

    The time of birth tells a file from an earlier one that had the same number.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    btime_ns: int


class StoredFile(NamedTuple):
    """A file of a committed checkpoint: its object's key, and the CRC-32 of every 16 MiB."""

    key: str
    crc32: list[int]


class StoredFiles:
    """Files of committed checkpoints of one task, by inode; each at the place where it was stored last.

    Parameters
    ----------
    limit : int
        How many are remembered.
    """

    def __init__(self, limit: int = MAX_STORED) -> None:
        self._limit = limit
        self._files: dict[Inode, StoredFile] = {}
        #: What an inode number was last known as: a file that was written to, or another one, replaces it.
        self._last: dict[tuple[int, int], Inode] = {}

    def add(self, inode: Inode, file: StoredFile) -> None:
        """Remember a file; what was known of its inode number is forgotten."""
        number = (inode.dev, inode.ino)
        previous = self._last.pop(number, None)
        if previous is not None:
            del self._files[previous]
        self._files[inode], self._last[number] = file, inode
        if len(self._files) > self._limit:
            oldest = next(iter(self._files))
            del self._files[oldest], self._last[oldest.dev, oldest.ino]

    def find(self, inode: Inode) -> StoredFile | None:
        """Where the store has the content of this very inode, unchanged since."""
        return self._files.get(inode)

    def __iter__(self) -> Iterator[tuple[Inode, StoredFile]]:
        """Oldest first."""
        return iter(self._files.items())

    def __len__(self) -> int:
        return len(self._files)

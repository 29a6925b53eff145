"""Small files go into one file, the *pack*: making a file costs more than copying a few kilobytes into another."""

from __future__ import annotations

import os
import stat

from ..manifest import PACKED, FileEntry
from .content import pack_path

#: Bytes that are written, and read back, at a time: few, as fresh memory costs more than it saves.
_BUFFER = 256 << 10


class Pack:
    """The pack of one snapshot, made when the first file comes.

    Parameters
    ----------
    target : str
        The snapshot's directory.
    """

    def __init__(self, target: str) -> None:
        self._path = pack_path(target)
        self._fd = -1
        self._buffer = bytearray()
        self._written = 0
        self._used = False
        #: A piece of what was written, and where it begins in the pack.
        self._read, self._read_at = b"", 0

    def add(self, path: str, status: os.stat_result, fd: int) -> FileEntry:
        """Copy one small file as it is now.

        Parameters
        ----------
        path : str
            In the snapshot.
        status, fd : os.stat_result and int
            Of the original, open.

        Raises
        ------
        OSError
            It cannot be read, or the pack not be written.
        """
        data = os.pread(fd, status.st_size, 0)
        self._used = True
        offset = self._written + len(self._buffer)
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()
        # By position, as this is done for each of thousands of files.
        return FileEntry(path, len(data), stat.S_IMODE(status.st_mode), PACKED, 0, status.st_mtime_ns, offset)

    def holds(self, entry: FileEntry, data: bytes) -> bool:
        """Whether this is what was captured of a file."""
        start = entry.offset - self._written
        if start >= 0:
            return self._buffer[start : start + entry.size] == data
        start = entry.offset - self._read_at
        if not 0 <= start <= len(self._read) - entry.size:
            # Files are looked at in the order in which they were captured: the next ones are in it as well.
            self._read, self._read_at = os.pread(self._fd, max(_BUFFER, entry.size), entry.offset), entry.offset
            start = 0
        return self._read[start : start + entry.size] == data

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        while self._buffer:
            count = os.write(self._fd, self._buffer)
            self._written += count
            del self._buffer[:count]

    def close(self) -> None:
        """Write what is left; a pack of empty files is a file as well."""
        try:
            if self._used:
                self._flush()
                self._used = False
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

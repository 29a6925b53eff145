"""Small files go into one file, the *pack*: making a file costs more than copying a few kilobytes into another."""

from __future__ import annotations

import os
import stat

from ..errors import SnapshotError
from ..manifest import PACKED, FileEntry
from ..source import pack_path
from .base import OpenFile

#: A file whose content changes under the copy is copied again so often before it is refused.
TRIES = 3

#: Bytes collected before they are written.
_BUFFER = 1 << 20


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

    def add(self, file: OpenFile) -> FileEntry:
        """Copy one small file as it is at one moment.

        Raises
        ------
        OSError
            It cannot be read, or the pack not be written.
        SnapshotError
            It was rewritten during each of the tries.
        """
        before, previous = file.status, None
        for _ in range(TRIES):
            data = os.pread(file.fd, before.st_size, 0)
            after = os.fstat(file.fd)
            if is_still(before, after, len(data)):
                break
            if previous is not None and data.startswith(previous):
                data = previous  # It only grew, a log perhaps: what it was at the first look.
                break
            before, previous = after, data
        else:
            raise restless(file.source)
        self._used = True
        offset = self._written + len(self._buffer)
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()
        mode = stat.S_IMODE(before.st_mode)
        return FileEntry(file.path, len(data), mode, PACKED, mtime_ns=before.st_mtime_ns, offset=offset)

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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


def is_still(before: os.stat_result, after: os.stat_result, copied: int) -> bool:
    """Whether nothing was written to a file between two looks at it, and all of it was copied."""
    return copied == before.st_size == after.st_size and after.st_mtime_ns == before.st_mtime_ns


def restless(source: str) -> SnapshotError:
    """The error for a file that never stands still."""
    return SnapshotError(
        f"Cannot capture {source}: something writes to it all the time",
        where=source,
        hint="Save when the file is complete, or write to a temporary file and rename it",
    )

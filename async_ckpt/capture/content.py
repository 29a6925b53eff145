"""Content to upload, readable at any offset: a file of a snapshot, or a tar made of one on the fly.

A snapshot's file may be made private while it is read (the lease holder copies it and renames the copy over
the link, then lets the trainer write into the old inode). So a read is valid only if *after* it the path still
names the inode that was read: the rename comes before the release, so whoever still sees the old inode read
clean bytes. Otherwise the same range is read again from the new inode.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import IntegrityError, StoreError, TransientStoreError, os_hint, os_reason
from ..manifest import PACKED, FileEntry

#: Errors of reading that may pass by themselves.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO)


class FileSource:
    """One captured file.

    Parameters
    ----------
    path : str
        The file inside the snapshot.
    size : int
        Its captured size in bytes; anything else found there is an ``IntegrityError``.
    offset : int or None
        Where its bytes begin, if ``path`` is a pack of many files.
    """

    def __init__(self, path: str, size: int, offset: int | None = None) -> None:
        self._path, self._size, self._offset = path, size, offset
        self._fd = -1
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._path

    @property
    def path(self) -> str | None:
        return self._path if self._offset is None else None

    @property
    def size(self) -> int:
        return self._size

    def pread(self, count: int, offset: int) -> bytes:
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        try:
            for _ in range(3):
                fd = self._open(once=count == self._size)
                try:
                    start = offset + (self._offset or 0)
                    data = os.pread(fd, count, start)
                    while len(data) < count:
                        more = os.pread(fd, count - len(data), start + len(data))
                        if not more:
                            break
                        data += more
                    opened, named = os.fstat(fd), os.stat(self._path)
                finally:
                    os.close(fd)
                if opened.st_ino == named.st_ino:
                    if len(data) < count or (self._offset is None and opened.st_size != self._size):
                        break
                    return data
                self.close()
        except FileNotFoundError as error:
            why = "The captured file is gone: something removed it from the spool"
            raise IntegrityError(why, where=self._path) from error
        except OSError as error:
            kind = TransientStoreError if error.errno in _PASSING else StoreError
            what = f"The captured file cannot be read: {os_reason(error)}"
            raise kind(what, where=self._path, hint=os_hint(error)) from error
        raise IntegrityError(
            f"The captured file has not its {self._size} bytes any more",
            where=self._path,
            hint="Something outside the trainer changed the spool",
        )

    def _open(self, *, once: bool) -> int:
        # A duplicate per read: close() of one reader must not pull the descriptor from under another.
        with self._lock:
            if self._fd < 0 and once:  # Nothing is left for a later read; thousands of small files take fewer calls.
                return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.dup(self._fd)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


def captured_source(data: str, entry: FileEntry) -> FileSource:
    """The content of one file of the snapshot at ``data``, however it was captured."""
    if entry.how == PACKED:
        return FileSource(pack_path(data), entry.size, entry.offset)
    return FileSource(os.path.join(data, entry.path), entry.size)


def pack_path(data: str) -> str:
    """Where a snapshot keeps its small files, one after the other."""
    return f"{data}.pack"


@dataclass(frozen=True)
class TarMember:
    """One member of a tar: ``kind`` is ``tarfile``'s type byte, ``mtime_ns`` a time in nanoseconds, ``target`` a
    symbolic link's.
    """

    path: str
    kind: bytes
    mode: int
    mtime_ns: int = 0
    target: str = ""
    source: FileSource | None = None


class TarSource:
    """A tar over captured files that exists nowhere: headers are made, contents read in place.

    Because every offset can be computed, it uploads in parallel parts like a file and needs no temporary space.
    """

    def __init__(self, name: str, members: Sequence[TarMember]) -> None:
        self.name = name
        self.path: str | None = None
        self._parts: list[bytes | FileSource] = []
        for member in members:
            self._parts.append(_header(member))
            if member.source is not None and member.source.size:
                self._parts.append(member.source)
                self._parts.append(b"\0" * (-member.source.size % tarfile.BLOCKSIZE))
        self._parts.append(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._offsets: list[int] = []
        total = 0
        for part in self._parts:
            self._offsets.append(total)
            total += len(part) if isinstance(part, bytes) else part.size
        self.size = total

    def pread(self, count: int, offset: int) -> bytes:
        import bisect

        end = min(offset + count, self.size)
        pieces: list[bytes] = []
        index = bisect.bisect_right(self._offsets, offset) - 1
        while offset < end:
            part, start = self._parts[index], offset - self._offsets[index]
            piece = part[start : start + end - offset] if isinstance(part, bytes) else part.pread(end - offset, start)
            if isinstance(part, FileSource) and start + len(piece) == part.size:
                part.close()  # A tar may have more members than a process may have open files.
            pieces.append(piece)
            offset += len(piece)
            index += 1
        return b"".join(pieces)

    def close(self) -> None:
        for part in self._parts:
            if isinstance(part, FileSource):
                part.close()


def _header(member: TarMember) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.type, info.linkname = member.kind, member.target
    info.mode, info.mtime = stat.S_IMODE(member.mode), max(member.mtime_ns // 10**9, 0)
    info.size = member.source.size if member.source else 0
    return info.tobuf(format=tarfile.GNU_FORMAT, errors="surrogateescape")

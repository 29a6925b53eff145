"""What a snapshot holds, as whoever uploads or loads it reads it: one captured file, or a tar made of many on the fly.

A captured file may be made private while it is read: the agent copies it, renames the copy over the link in the
snapshot, and then lets the trainer write into the old inode. The rename comes before the first write. So what was read
is good if the path still names, *after* the read, the inode that was read. If it names another one, the same is read
again from there. ``CapturedFile`` is the only place that does this.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..errors import IntegrityError, StoreError, TransientStoreError, os_hint, os_reason
from ..manifest import PACKED, FileEntry
from ..system.files import copy_content, pwrite_all

T = TypeVar("T")

#: Errors of reading that may pass by themselves.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO)

#: A file is made private once, and its copy is never replaced again. More than that is something else's doing.
_TRIES = 3


class CapturedFile:
    """One captured file, for any number of readers at once.

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
    def size(self) -> int:
        return self._size

    def pread(self, count: int, offset: int) -> bytes:
        """Exactly ``min(count, size - offset)`` bytes at ``offset``.

        Raises
        ------
        IntegrityError
            The file is gone, or has another size than it was captured with.
        StoreError
            It cannot be read; ``TransientStoreError`` where that may pass.
        """
        count = min(count, self._size - offset)
        if count <= 0:
            return b""
        start = offset + (self._offset or 0)

        def read(fd: int) -> bytes | None:
            try:
                data = os.pread(fd, count, start)
                while len(data) < count:
                    more = os.pread(fd, count - len(data), start + len(data))
                    if not more:
                        return None
                    data += more
            except OSError as error:
                raise self._unreadable(error) from error
            return data

        return self._read(read, last=count == self._size)

    def from_file(self, copy: Callable[[int], T | None]) -> T | None:
        """Hand out the descriptor of a file that has this content and nothing else, to be copied inside the kernel.

        Parameters
        ----------
        copy : callable
            Gets the descriptor. It is called again if what it read does not count: it must begin anew each time. None
            says that there were too few bytes.

        Returns
        -------
        What ``copy`` returned; None, without a call, if the content is a part of a file.

        Raises
        ------
        IntegrityError, StoreError
            As ``pread``. What ``copy`` raises is raised as it is.
        """
        return self._read(copy, last=True) if self._offset is None else None

    def copy_to(self, target_fd: int) -> None:
        """Make this the content of an open file, cloned or copied inside the kernel where that can be.

        Raises
        ------
        IntegrityError, StoreError
            As ``pread``.
        OSError
            The target cannot be written to.
        """

        def copy(fd: int) -> bool | None:
            os.ftruncate(target_fd, 0)
            return copy_content(fd, target_fd, self._size) == self._size or None

        if not self.from_file(copy):
            pwrite_all(target_fd, self.pread(self._size, 0), 0)

    def _read(self, read: Callable[[int], T | None], *, last: bool) -> T:
        """``last``: nothing is left for a later read, so that no descriptor need be kept."""
        for _ in range(_TRIES):
            fd = self._open(last)
            try:
                found = read(fd)
                opened, named = os.fstat(fd), self._stat()
            finally:
                os.close(fd)
            if os.path.samestat(opened, named):
                if found is None or (self._offset is None and opened.st_size != self._size):
                    break
                return found
            self.close()
        raise IntegrityError(
            f"The captured file has not its {self._size} bytes any more", where=self._path,
            hint="Something outside the trainer changed the spool",
        )  # fmt: skip

    def _open(self, last: bool) -> int:
        # A duplicate per read: close() of one reader must not pull the descriptor from under another.
        with self._lock:
            try:
                if self._fd < 0 and last:  # Thousands of small files take fewer calls so.
                    return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                if self._fd < 0:
                    self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                return os.dup(self._fd)
            except OSError as error:
                raise self._unreadable(error) from error

    def _stat(self) -> os.stat_result:
        try:
            return os.stat(self._path)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StoreError:
        if isinstance(error, FileNotFoundError):
            return IntegrityError("The captured file is gone: something removed it from the spool", where=self._path)
        kind = TransientStoreError if error.errno in _PASSING else StoreError
        return kind(f"The captured file cannot be read: {os_reason(error)}", where=self._path, hint=os_hint(error))

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


def captured_file(data: str, entry: FileEntry) -> CapturedFile:
    """One file of the snapshot at ``data``, however it was captured."""
    if entry.how == PACKED:
        return CapturedFile(pack_path(data), entry.size, entry.offset)
    return CapturedFile(os.path.join(data, entry.path), entry.size)


def pack_path(data: str) -> str:
    """Where a snapshot keeps its small files, one after the other."""
    return f"{data}.pack"


@dataclass(frozen=True)
class TarMember:
    """One member of a tar.

    Parameters
    ----------
    kind : bytes
        ``tarfile``'s byte for a file, a directory or a symbolic link.
    mtime_ns : int
        Modification time in nanoseconds.
    target : str
        What a symbolic link says.
    content : CapturedFile, optional
        Of a file.
    """

    path: str
    kind: bytes
    mode: int
    mtime_ns: int = 0
    target: str = ""
    content: CapturedFile | None = None


class TarContent:
    """A tar over captured files that exists nowhere: headers are made, contents read in place.

    Because every offset can be computed, it uploads in parallel parts like a file and needs no temporary space.
    """

    def __init__(self, name: str, members: Sequence[TarMember]) -> None:
        self.name = name
        self._parts: list[bytes | CapturedFile] = []
        for member in members:
            self._parts.append(_header(member))
            if member.content is not None and member.content.size:
                self._parts.append(member.content)
                self._parts.append(b"\0" * (-member.content.size % tarfile.BLOCKSIZE))
        self._parts.append(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._offsets: list[int] = []
        total = 0
        for part in self._parts:
            self._offsets.append(total)
            total += len(part) if isinstance(part, bytes) else part.size
        self.size = total

    def pread(self, count: int, offset: int) -> bytes:
        end = min(offset + count, self.size)
        pieces: list[bytes] = []
        index = bisect.bisect_right(self._offsets, offset) - 1
        while offset < end:
            part, start = self._parts[index], offset - self._offsets[index]
            piece = part[start : start + end - offset] if isinstance(part, bytes) else part.pread(end - offset, start)
            if isinstance(part, CapturedFile) and start + len(piece) == part.size:
                part.close()  # A tar may have more members than a process may have open files.
            pieces.append(piece)
            offset += len(piece)
            index += 1
        return b"".join(pieces)

    def from_file(self, copy: Callable[[int], T | None]) -> T | None:
        """There is no such file."""
        return None

    def close(self) -> None:
        for part in self._parts:
            if isinstance(part, CapturedFile):
                part.close()


def _header(member: TarMember) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.type, info.linkname = member.kind, member.target
    info.mode, info.mtime = stat.S_IMODE(member.mode), max(member.mtime_ns // 10**9, 0)
    info.size = member.content.size if member.content else 0
    return info.tobuf(format=tarfile.GNU_FORMAT, errors="surrogateescape")

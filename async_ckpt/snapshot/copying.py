"""``copy``: the bytes, now. Safe everywhere; takes time in proportion to the size."""

from __future__ import annotations

import os
import stat

from ..errors import SnapshotError
from ..files import copy_content
from ..manifest import COPY, FileEntry

#: A file whose content changes under the copy is copied again so often before it is refused.
_TRIES = 3
_SMALL = 1 << 20


class Copy:
    """Copies; with ``reflink=True`` it clones first where the file system can."""

    def __init__(self, *, reflink: bool = False) -> None:
        self._reflink = reflink

    def capture_file(self, source: str, target: str, status: os.stat_result, entry_path: str) -> FileEntry:
        return copy_file(source, target, entry_path, reflink=self._reflink)

    def leases(self) -> dict[str, int]:
        return {}


def copy_file(source: str, target: str, entry_path: str, *, reflink: bool) -> FileEntry:
    """Copy one file as it is at one moment.

    A file that only grew meanwhile (a log somebody appends to) is taken at the length it had. One that was rewritten is
    copied again.

    Raises
    ------
    OSError
        As ``open``, ``read`` and ``write`` do.
    SnapshotError
        It was rewritten during each of the tries.
    """
    # O_NONBLOCK: a FIFO that took the file's place meanwhile must not hold us up.
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    target_fd = -1
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        for _ in range(_TRIES):
            before = os.fstat(source_fd)
            size = _copy_now(source_fd, target_fd, before.st_size, reflink)
            after = os.fstat(source_fd)
            grew = after.st_size > before.st_size
            if size == before.st_size and (grew or after.st_mtime_ns == before.st_mtime_ns):
                return FileEntry(entry_path, size, stat.S_IMODE(before.st_mode), COPY)
            os.ftruncate(target_fd, 0)
        raise SnapshotError(
            f"Cannot capture {source}: something writes to it all the time", where=source,
            hint="Save when the file is complete, or write to a temporary file and rename it",
        )  # fmt: skip
    finally:
        os.close(source_fd)
        if target_fd >= 0:
            os.close(target_fd)


def _copy_now(source_fd: int, target_fd: int, size: int, reflink: bool) -> int:
    if size > _SMALL:
        return copy_content(source_fd, target_fd, size, reflink=reflink)
    data = os.pread(source_fd, size, 0)
    return os.pwrite(target_fd, data, 0) if data else 0

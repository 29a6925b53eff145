"""``copy``: the bytes, now. Safe everywhere; takes time in proportion to the size."""

from __future__ import annotations

import os
import stat

from ..files import copy_content
from ..manifest import COPY, FileEntry
from .packing import TRIES, Pack, is_whole, restless


class Copy:
    """Copies; small files into the pack.

    Parameters
    ----------
    pack : Pack
        The snapshot's.
    pack_below_bytes : int
        Files smaller than this go there.
    reflink : bool
        Clone larger files where the file system can.
    """

    def __init__(self, pack: Pack, pack_below_bytes: int, *, reflink: bool = False) -> None:
        self._pack, self._pack_below, self._reflink = pack, pack_below_bytes, reflink

    def capture_file(self, source: str, target: str, status: os.stat_result, entry_path: str) -> FileEntry:
        if status.st_size < self._pack_below:
            return self._pack.add(source, entry_path)
        return copy_file(source, target, entry_path, reflink=self._reflink)

    def finish(self) -> None:
        self._pack.close()

    def leases(self) -> dict[str, int]:
        return {}


def copy_file(source: str, target: str, entry_path: str, *, reflink: bool) -> FileEntry:
    """Copy one file as it is at one moment.

    Raises
    ------
    OSError
        As ``open``, ``read`` and ``write`` do.
    SnapshotError
        It was rewritten during each of the tries.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    target_fd = -1
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        for _ in range(TRIES):
            before = os.fstat(source_fd)
            size = copy_content(source_fd, target_fd, before.st_size, reflink=reflink)
            if is_whole(before, os.fstat(source_fd), size):
                return FileEntry(entry_path, size, stat.S_IMODE(before.st_mode), COPY)
            os.ftruncate(target_fd, 0)
        raise restless(source)
    finally:
        os.close(source_fd)
        if target_fd >= 0:
            os.close(target_fd)

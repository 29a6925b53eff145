"""``copy``: the bytes, now. Safe everywhere; takes time in proportion to the size."""

from __future__ import annotations

import os
import stat

from ..files import copy_content, digest_fd
from ..manifest import COPY, FileEntry
from .base import OpenFile
from .packing import TRIES, Pack, is_still, restless


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

    def capture_file(self, file: OpenFile, target: str) -> FileEntry:
        if file.status.st_size < self._pack_below:
            return self._pack.add(file)
        return copy_file(file, target, reflink=self._reflink)

    def finish(self) -> None:
        self._pack.close()

    def leases(self) -> dict[str, int]:
        return {}


def copy_file(file: OpenFile, target: str, *, reflink: bool) -> FileEntry:
    """Copy one file as it is at one moment.

    Raises
    ------
    OSError
        As ``read`` and ``write`` do.
    SnapshotError
        It was rewritten during each of the tries.
    """
    target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        before = file.status
        for _ in range(TRIES):
            size = copy_content(file.fd, target_fd, before.st_size, reflink=reflink)
            after = os.fstat(file.fd)
            # A file that only grew meanwhile (a log) is taken as it was: its beginning is read again to be sure.
            grew = after.st_size > before.st_size == size
            if is_still(before, after, size) or (grew and digest_fd(file.fd, size) == digest_fd(target_fd, size)):
                mode = stat.S_IMODE(before.st_mode)
                return FileEntry(file.path, size, mode, COPY, mtime_ns=before.st_mtime_ns)
            before = after
            os.ftruncate(target_fd, 0)
        raise restless(file.source)
    finally:
        os.close(target_fd)

"""``copy``: copies the bytes before ``save()`` returns. Safe everywhere, and takes time in proportion to the size."""

from __future__ import annotations

import os
import stat

from ..manifest import COPY, FileEntry
from ..system.files import clone, copy_range
from ..system.filesystems import is_local, uncached
from .base import FileStrategy
from .open_file import OpenFile, is_quiet
from .pack import Pack


class Copy(FileStrategy):
    """Copies each file; small ones go into the pack.

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
        self.pack = pack

    def capture_file(self, file: OpenFile) -> FileEntry:
        if file.status.st_size < self._pack_below:
            if file.is_local:
                return self._pack.add(file.item.path, file.status, file.fd)
            with uncached(file.fd, file.on()) as fd:
                return self._pack.add(file.item.path, file.status, fd)
        return copy_file(file, reflink=self._reflink)

    def finish(self) -> None:
        self._pack.close()


def copy_file(file: OpenFile, *, reflink: bool) -> FileEntry:
    """Copy one file as it is now, or clone it.

    Raises
    ------
    OSError
        As ``read`` and ``write`` do.
    """
    status = file.status
    target_fd = os.open(file.target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if reflink and clone_file(file, target_fd):
            size = status.st_size
        else:
            file.sure = is_quiet(file)
            with uncached(file.fd, file.on()) as fd:
                size = copy_range(fd, target_fd, status.st_size)
    finally:
        os.close(target_fd)
    return FileEntry(file.path, size, stat.S_IMODE(status.st_mode), COPY, mtime_ns=status.st_mtime_ns)


def clone_file(file: OpenFile, target_fd: int) -> bool:
    """Clone what a file is now, up to the size it was opened with; False where that cannot be.

    What is mapped is written back for it. So each later write through a mapping changes the file's time.
    """
    size = file.status.st_size
    if not size or not clone(file.fd, target_fd):
        return False
    if os.fstat(target_fd).st_size > size:
        os.ftruncate(target_fd, size)
    file.sure = is_local(file.on())
    return True

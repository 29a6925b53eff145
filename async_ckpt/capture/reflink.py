"""``reflink``: share the extents, copy on write (xfs, btrfs, bcachefs). Safe; flushes what was just written first."""

from __future__ import annotations

import os
import stat

from ..errors import SnapshotError
from ..manifest import REFLINK, FileEntry
from .base import FileStrategy
from .copying import clone_file, copy_file
from .open_file import OpenFile


class Reflink(FileStrategy):
    """Clones every file; empty ones are copied."""

    def capture_file(self, file: OpenFile) -> FileEntry:
        status = file.status
        if not status.st_size:
            return copy_file(file, reflink=False)
        target_fd = os.open(file.target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not clone_file(file, target_fd):
                raise SnapshotError(
                    f"Cannot capture {file.full}: its file system ({file.on()}) cannot clone files (reflink)",
                    where=file.full, hint="Use snapshot='auto', or put the spool on the same xfs or btrfs",
                )  # fmt: skip
            size = os.fstat(target_fd).st_size
        finally:
            os.close(target_fd)
        return FileEntry(file.path, size, stat.S_IMODE(status.st_mode), REFLINK, mtime_ns=status.st_mtime_ns)

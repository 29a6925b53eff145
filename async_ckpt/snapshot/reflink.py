"""``reflink``: share the extents, copy on write (xfs, btrfs, bcachefs). Safe; flushes what was just written first."""

from __future__ import annotations

import os
import stat

from ..errors import SnapshotError
from ..files import clone
from ..manifest import REFLINK, FileEntry
from .base import OpenFile
from .copying import copy_file


class Reflink:
    """Clones every file; empty ones are copied."""

    def capture_file(self, file: OpenFile, target: str) -> FileEntry:
        if not file.status.st_size:
            return copy_file(file, target, reflink=False)
        target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not clone(file.fd, target_fd):
                raise SnapshotError(
                    f"Cannot capture {file.source}: its file system cannot clone files (reflink)", where=file.source,
                    hint="Use snapshot='auto', or put the spool on the same xfs or btrfs",
                )  # fmt: skip
            size = os.fstat(target_fd).st_size
        finally:
            os.close(target_fd)
        status = file.status
        mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        return FileEntry(file.path, size, mode, REFLINK, mtime_ns=mtime_ns)

    def finish(self) -> None:
        """Nothing is held back."""

    def leases(self) -> dict[str, int]:
        return {}

"""``reflink``: share the extents, copy on write (xfs, btrfs, bcachefs). Safe; flushes what was just written first."""

from __future__ import annotations

import os
import stat

from ..errors import SnapshotError
from ..files import clone
from ..manifest import REFLINK, FileEntry
from .copying import copy_file


class Reflink:
    """Clones every file; empty ones are copied."""

    def capture_file(self, source: str, target: str, status: os.stat_result, entry_path: str) -> FileEntry:
        if not status.st_size:
            return copy_file(source, target, entry_path, reflink=False)
        source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if not clone(source_fd, target_fd):
                    raise SnapshotError(
                        f"Cannot capture {source}: its file system cannot clone files (reflink)", where=source,
                        hint="Use snapshot='auto', or put the spool on the same xfs or btrfs",
                    )  # fmt: skip
                size = os.fstat(target_fd).st_size
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)
        return FileEntry(entry_path, size, stat.S_IMODE(status.st_mode), REFLINK)

    def finish(self) -> None:
        """Nothing is held back."""

    def leases(self) -> dict[str, int]:
        return {}

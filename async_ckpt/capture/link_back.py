"""Hard links out of a snapshot, for a load that copies nothing; the counterpart of ``hardlink``.

What is loaded may be rewritten in place while the snapshot is still uploaded. So a file is linked only under a lease,
and only where a loss of that lease would be noticed: in the snapshot it is a link that still has the inode and the time
of its capture. Copies, and what was made private, have nothing to compare with.
"""

from __future__ import annotations

import contextlib
import os

from ..manifest import LINK, FileEntry
from . import lease


class LinkBack:
    """Links captured files into a destination and takes a lease on each.

    Parameters
    ----------
    budget : int
        How many leases may be taken.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        #: Leased descriptors of what was linked, by the entry's path.
        self.leases: dict[str, int] = {}

    def link(self, entry: FileEntry, path: str, target: str) -> bool:
        """Make ``target`` a link of the captured file ``path``. False, and nothing is there, where it must be copied.

        It must not have a third name: a trainer's file, or another load's, would change with this one.
        """
        if entry.how != LINK or len(self.leases) >= self._budget:
            return False
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if not _is_as_captured(fd, entry, names=1) or not lease.take(fd):
                return False
            os.link(path, target, follow_symlinks=False)
            # Once more, under the lease: another load may have linked it at the same time, or a private copy have taken
            # the path.
            if os.path.samestat(os.lstat(target), os.fstat(fd)) and _is_as_captured(fd, entry, names=2):
                os.chmod(target, entry.mode)
                self.leases[entry.path], fd = fd, -1
                return True
            os.unlink(target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(target)
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def hand_over(self) -> dict[str, int]:
        """The leases, which are the caller's from now on."""
        leases, self.leases = self.leases, {}
        return leases

    def close(self) -> None:
        """Let go of what was not handed over."""
        for fd in self.hand_over().values():
            os.close(fd)


def _is_as_captured(fd: int, entry: FileEntry, *, names: int) -> bool:
    status = os.fstat(fd)
    return status.st_nlink == names and entry.is_of(status)

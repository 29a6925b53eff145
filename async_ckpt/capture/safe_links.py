"""How much of a capture may be links: no more than can be copied away in time if the trainer rewrites it.

The kernel holds up whoever rewrites a linked file, but only for some time (``lease.BREAK_TIME_S``). What is not copied
away by then would be torn. So what is beyond that is copied before ``save()`` returns, unless it is known to be a new
file each time, or the file system clones files.
"""

from __future__ import annotations

import contextlib
import os

from ..system.files import can_clone
from .copy_speed import CopySpeed
from .habits import Habits, original_of
from .lease import BREAK_TIME_S

#: So many bytes can be copied away on any disk: for a small save nobody looks up how fast it is.
_ALWAYS_BYTES = 256 << 20


def ranks_here() -> int:
    """How many ranks ``torchrun``, or who tells it likewise, has started on this machine; 1 where nobody tells."""
    with contextlib.suppress(ValueError):
        return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return 1


class SafeLinks:
    """Decides for one capture.

    Parameters
    ----------
    saved_path : str
        What is captured.
    folder : str
        Where its snapshot is made.
    savers : int
        How many processes of this machine save at the same time, each its part: they share the disk.
    """

    def __init__(self, habits: Habits, copy_speed: CopySpeed, saved_path: str, folder: str, savers: int = 1) -> None:
        self._savers = savers
        self._habits, self.copy_speed, self._saved_path, self._folder = habits, copy_speed, saved_path, folder
        self._linked = self.copied = 0
        self._clones: bool | None = None

    def may_link(self, path: str, size: int) -> bool:
        """Whether one more file, of so many bytes, may be a link; it counts as one then. ``path``: in the snapshot."""
        self._linked += size
        if (
            self._linked <= _ALWAYS_BYTES
            or self._linked <= self.copy_speed.safe_bytes // self._savers
            or self._habits.is_new_each_time(original_of(self._saved_path, path))
        ):
            return True
        if self._clones is None:
            self._clones = can_clone(self._folder)
        if not self._clones:
            self._linked -= size
        return self._clones

    def note_copy(self, size: int, seconds: float) -> None:
        """One that may not be a link was copied."""
        self.copied += size
        self.copy_speed.add(size, seconds)

    def report(self) -> str:
        """For the task's log, of a capture that copied anything; empty: it did not."""
        if not self.copied:
            return ""
        rate, safe = self.copy_speed.bytes_per_s, self.copy_speed.safe_bytes
        seen = f"This disk copies {rate / 1e6:.0f} MB/s" if rate else "How fast this disk copies is not known yet"
        return (
            f"{self.copied / 1e9:.1f} GB of {self._saved_path} were copied before save() returned. {seen}: of what a "
            f"trainer may rewrite in place, about {safe / 1e9:.1f} GB can be copied away in the {BREAK_TIME_S:g} s for "
            "which the kernel holds it up. Write to a new name, or rename a new file over the old one (that is learned "
            "after a few saves), or put the files and the spool on one xfs or btrfs"
        )

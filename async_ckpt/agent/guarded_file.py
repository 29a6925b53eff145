"""A leased file that the agent answers for."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from ..capture import lease


@dataclass
class GuardedFile:
    """A leased file: its descriptor, the link's path, size (bytes) and mtime (nanoseconds) as captured, the trainer's
    own path (``original``), and a directory for temporary files (``folder``).
    """

    fd: int
    path: str
    size: int
    mtime_ns: int
    original: str
    folder: str = ""
    #: Somebody copies it, or is about to.
    busy: bool = False
    #: The store has it: whoever copies it may stop.
    needless: bool = False
    #: Monotonic time when the lease was last seen to stand; 0: never by us (another agent may have lost it before).
    stood: float = 0.0
    #: Device and number of the inode.
    inode: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        status = os.fstat(self.fd)
        self.inode = status.st_dev, status.st_ino

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have written to it yet: the lease stands, or has not been broken for so long that the
        kernel would have let the writer in.
        """
        return time.monotonic() < self.stood + lease.BREAK_TIME_S / 2 or not lease.is_breaking(self.fd)

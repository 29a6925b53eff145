"""How much may wait for the store: number, bytes, and what is left of the disk."""

from __future__ import annotations

import contextlib
import os

from ..config import Config

#: Of a small disk at most one part in this many is kept free.
_SHARE = 20


def is_short_of_disk(folder: str, config: Config, wanted: int = 0) -> bool:
    """Whether too little is left where ``folder`` lies, or would be with ``wanted`` bytes more; microseconds."""
    return bool(_what_is_short(folder, config, wanted))


def _what_is_short(folder: str, config: Config, wanted: int = 0) -> str:
    """The limit that the file system of ``folder`` is below; empty: none."""
    # Gone, a file system that does not tell, or no path at all: nothing is known against it.
    with contextlib.suppress(OSError, ValueError):
        facts = os.statvfs(folder)
        total, free = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
        if free - wanted < min(config.min_free_bytes, total // _SHARE):
            return f"min_free_bytes={config.min_free_bytes}"
        # Without a number of inodes (btrfs) there are as many as there is room for.
        if facts.f_favail < min(config.min_free_inodes, facts.f_files // _SHARE):
            return f"min_free_inodes={config.min_free_inodes}"
    return ""


def why_full(pending: int, pending_bytes: int, folder: str, config: Config) -> str:
    """Why no more should be saved to ``folder`` now; empty if there is room.

    A short disk counts only where something is pending: what will be given back when it is stored.
    """
    if config.max_pending and pending >= config.max_pending:
        return f"{pending} checkpoint{'s are' if pending != 1 else ' is'} pending, and max_pending={config.max_pending}"
    if config.max_pending_bytes and pending_bytes >= config.max_pending_bytes:
        return f"{pending_bytes} bytes are pending, and max_pending_bytes={config.max_pending_bytes}"
    if pending and (short := _what_is_short(folder, config)):
        return f"{folder} has less than {short} left"
    return ""

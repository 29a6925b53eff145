"""Capture a file or a directory as it is now, in a time that does not depend on its size."""

from __future__ import annotations

from ..config import Config
from ..errors import UsageError
from .safe_links import SafeLinks
from .snapshot import Snapshot
from .strategy import STRATEGIES, Strategy
from .tree import capture_tree

__all__ = ["STRATEGIES", "Snapshot", "capture", "check_strategy"]


def check_strategy(strategy: str, *, leases: bool = True) -> str:
    """Return the strategy's name if it exists and can work here.

    Raises
    ------
    UsageError
        It is unknown or was dropped, or it needs leases where none can be held (``uploader="thread"``).
    """
    if strategy == "move":  # Earlier versions had it.
        raise UsageError(
            "snapshot='move' is not offered any more",
            hint="save() and then shutil.rmtree() does the same and loses nothing",
        )
    if strategy not in STRATEGIES:
        raise UsageError(f"snapshot={strategy!r} is unknown", hint=f"Use one of {', '.join(STRATEGIES)}")
    if strategy == "hardlink" and not leases:
        raise UsageError(
            "snapshot='hardlink' needs an agent in a process of its own to guard the links",
            hint="Use @checkpoint(uploader='process'), or snapshot='auto'",
        )
    return strategy


def capture(
    path: str, target: str, strategy: str, config: Config, *, lease_budget: int = 0, limit: SafeLinks | None = None
) -> Snapshot:
    """Capture ``path`` into the new directory ``target``.

    Parameters
    ----------
    path : str
        A regular file or a directory; a symbolic link to one is followed.
    target : str
        Directory to make; on the same file system if the capture is to be quick.
    strategy : str
        One of ``STRATEGIES``.
    lease_budget : int
        How many leases may be taken now; 0 without an agent that answers when somebody wants to write to a linked file.
    limit : SafeLinks, optional
        How many bytes may be linked.

    Raises
    ------
    SnapshotError
        With the path and the reason; ``target`` is removed, and ``path`` is as it was.
    """
    files = Strategy(strategy, target, config, lease_budget=lease_budget, limit=limit)
    return capture_tree(path, target, files, config)

"""Capture a file or a directory as it is now, in a time that does not depend on its size.

Where to add a strategy: one file here with a ``FileStrategy``, one line in ``STRATEGIES`` and in ``capture``; the suite
in ``tests/contract/test_snapshot.py`` then runs on it.
"""

from __future__ import annotations

from ..config import Config
from ..errors import UsageError
from .base import FileStrategy, Snapshot
from .copying import Copy
from .hardlink import Auto, HardLink, LinkLimit
from .pack import Pack
from .reflink import Reflink
from .tree import capture_tree

__all__ = ["STRATEGIES", "Snapshot", "capture", "check_strategy"]

STRATEGIES = ("auto", "hardlink", "reflink", "copy")


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
    path: str, target: str, strategy: str, *, guarded: bool, config: Config, lease_budget: int,
    limit: LinkLimit | None = None,
) -> Snapshot:  # fmt: skip
    """Capture ``path`` into the new directory ``target``.

    Parameters
    ----------
    path : str
        A regular file or a directory; a symbolic link to one is followed.
    target : str
        Directory to make; on the same file system if the capture is to be quick.
    strategy : str
        One of ``STRATEGIES``.
    guarded : bool
        Whether there is an agent that answers when somebody wants to write to a hard-linked file; else none is linked.
    lease_budget : int
        How many leases may be taken now.
    limit : LinkLimit, optional
        How many bytes may be linked.

    Raises
    ------
    SnapshotError
        With the path and the reason; ``target`` is removed, and ``path`` is as it was.
    """
    small = config.pack_below_bytes
    copies = Copy(Pack(target), small, reflink=strategy == "auto")
    files: FileStrategy
    if strategy == "copy" or (strategy == "auto" and not guarded):
        files = copies
    elif strategy == "reflink":
        files = Reflink()
    elif not guarded:
        raise UsageError("snapshot='hardlink' needs a running agent", hint="Use snapshot='auto'")
    elif strategy == "hardlink":
        files = HardLink(lease_budget, limit)
    else:
        files = Auto(HardLink(lease_budget, limit), copies, small)
    return capture_tree(path, target, files, config)

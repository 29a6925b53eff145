"""What a walk over a directory finds, and the errors that name it."""

from __future__ import annotations

import stat
from typing import NamedTuple

from ..errors import MissingPathError, SnapshotError, os_hint, os_reason


class Item(NamedTuple):
    """One entry of the walk.

    Parameters
    ----------
    path : str
        Its path in the snapshot.
    full : str
        Where it stands.
    kind : int
        One of ``stat.S_IFREG``, ``S_IFDIR``, ``S_IFLNK``.
    text : str
        What a symbolic link says in the snapshot.
    link : str
        The symbolic link that led here, out of what is saved; empty for most.
    """

    path: str
    full: str
    kind: int
    text: str = ""
    link: str = ""

    @property
    def shown(self) -> str:
        """Where it stands, for people."""
        return f"{self.link} -> {self.full}" if self.link else self.full


def failure(path: str, error: OSError) -> SnapshotError:
    """An OSError during a capture, in the user's words."""
    if isinstance(error, FileNotFoundError):
        return MissingPathError(
            f"Cannot capture {path}: it vanished while it was captured",
            where=path, hint="Save only what is complete; let nothing delete files there during save()",
        )  # fmt: skip
    return SnapshotError(f"Cannot capture {path}: {os_reason(error)}", where=path, hint=os_hint(error))


def refused(path: str, mode: int, text: str = "") -> SnapshotError:
    """The error for what is neither file nor directory nor link; ``text`` is that of a link that leads there."""
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a block device",
        stat.S_IFCHR: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode), "no regular file")
    hint = "Keep it outside of the directory you save"
    if text:
        return refused_link(path, text, f"that is {kind}", hint)
    return SnapshotError(f"Cannot capture {path}: it is {kind}", where=path, hint=hint)


def refused_link(link: str, text: str, why: str, hint: str) -> SnapshotError:
    """The error for a symbolic link that cannot be captured."""
    return SnapshotError(f"Cannot capture the symbolic link {link} -> {text}: {why}", where=link, hint=hint)

"""Every error this library raises, with what a user needs to act on it.

An error says *what* was tried, *where* (a path, a key, an address), *why* it failed and, where there is
one, *the way out*. Errors of other libraries are mapped to these once, at the edge where they appear:
``OSError`` in ``capture`` and ``spool``, ``ClientError`` in ``stores/s3``, socket errors in ``ipc``.
"""

from __future__ import annotations

import errno
import functools
from typing import ClassVar


class CheckpointError(Exception):
    """Base of all errors of async_ckpt.

    Parameters
    ----------
    what : str
        One sentence: the operation and why it failed.
    where : str
        The path, key or address concerned; empty where there is none.
    hint : str
        The way out, as an instruction; empty where none is known.
    """

    #: The name by which other programs know it.
    kind: ClassVar[str] = "CheckpointError"

    def __init_subclass__(cls) -> None:
        if "kind" not in vars(cls):
            cls.kind = cls.__name__

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what, where, hint)

    def __reduce__(self) -> tuple[object, ...]:
        """Other processes get errors pickled, and so does an artifact of ``@catch``."""
        return functools.partial(type(self), where=self.where, hint=self.hint), (self.what,), self.__dict__

    def __str__(self) -> str:
        text = self.what
        if self.where and self.where not in text:
            text += f" ({self.where})"
        return f"{text}. {self.hint}" if self.hint else text


class UsageError(CheckpointError, ValueError):
    """An argument is not valid; nothing was done."""


class SnapshotError(CheckpointError):
    """A directory could not be captured; nothing was admitted."""


class MissingPathError(SnapshotError, FileNotFoundError):
    """What was to be saved, or a part of it, is not there; callers of ``open`` catch it as they are used to."""

    kind = "SnapshotError"


class SpoolError(CheckpointError):
    """The spool on the local disk cannot be used."""


class NotOurs(SpoolError):
    """Somebody else has made the directory in which the spool should be."""

    kind = "SpoolError"


class AgentError(CheckpointError):
    """The agent cannot be started or does not answer."""


class NoAgent(AgentError):
    """There is no agent now; there may be one in a moment."""

    kind = "AgentError"


class ProtocolError(CheckpointError):
    """A frame on the agent's socket is malformed, too long or of another version."""


class BacklogError(CheckpointError):
    """Too much waits for the store; nothing was saved."""


class FlushError(CheckpointError):
    """Not every admitted checkpoint became durable."""


class WatchError(CheckpointError):
    """A watched directory was not followed to its end: something in it may not be saved."""


class WaitTimeout(CheckpointError, TimeoutError):
    """A wait reached its limit; the work goes on."""


class StoreError(CheckpointError):
    """The store refused for good: trying again will not help."""


class TransientStoreError(StoreError):
    """The store failed in a way that may pass (429, 5xx, reset, time-out): worth a retry."""

    #: For how many seconds the store asks us to stay away.
    pause_s: float = 0.0


class NotFound(StoreError):
    """There is no object, or no checkpoint, of that name."""


class IntegrityError(StoreError):
    """What was read is not what was written; it is never handed out."""


_OS_HINTS = {
    errno.ENOSPC: "Free some space there, or set METAFLOW_ASYNC_CKPT_SPOOL_DIR to a disk with more",
    errno.EDQUOT: "The disk quota is used up: free some space or raise the quota",
    errno.EACCES: "Check the permissions of the path for the user the task runs as",
    errno.EPERM: "Check the ownership and the mount options of the path",
    errno.EROFS: "The file system is mounted read-only: choose another path",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or save with snapshot='copy'",
    errno.ELOOP: "A symbolic link leads round in a circle there, or has just taken a file's place",
    errno.ENAMETOOLONG: "A name has more than 255 bytes, or a path more than 4,095: make it shorter, or flatter",
    errno.EIO: "The disk reports an I/O error: check it before anything else",
}


def os_reason(error: OSError) -> str:
    """The reason of an OSError in words, without its path (which the caller names)."""
    return error.strerror or str(error) or type(error).__name__


def os_hint(error: OSError) -> str:
    """The way out of an OSError, as far as its number tells one."""
    return _OS_HINTS.get(error.errno or 0, "")


def shorten(text: str, most: int) -> str:
    """A text for people, cut off after ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}…"

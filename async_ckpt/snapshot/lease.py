"""Leases: copy-on-write in user space for hard-linked files.

A read lease on an inode makes the kernel hold whoever opens it for writing, or truncates it, through any name, until
the holder lets go (or ``/proc/sys/fs/lease-break-time``, 45 s, has passed). The holder uses that moment to copy the
file, to rename the copy over its own link, and to release the lease. See fcntl(2), F_SETLEASE.

The lease belongs to the open file description. It is taken by the saving process and shared with the agent by passing
the descriptor over the socket, so it stands as long as either lives. The signal goes to the agent alone, which has it
blocked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from ..errors import SnapshotError, os_reason
from ..files import copy_content

#: A real-time signal: blocked in the agent from its first instruction, queued, and no default action anybody relies on.
LEASE_SIGNAL = getattr(signal, "SIGRTMIN", 0) + 9

_F_SETSIG = 10


def break_time_s() -> float:
    """How long the kernel holds a writer before it breaks a lease by force, in seconds."""
    try:
        with open("/proc/sys/fs/lease-break-time", encoding="ascii") as file:
            return float(file.read())
    except (OSError, ValueError):
        return 45.0


def take(fd: int, owner_pid: int) -> bool:
    """Take a read lease on an open file whose break is signalled to ``owner_pid``.

    Returns
    -------
    bool
        False where it cannot be had: somebody has the file open for writing, or mapped shared and writable; the file
        belongs to somebody else; the file system has no leases.
    """
    try:
        # The owner comes first: without one the kernel would make us the owner, and the signal would kill the trainer.
        fcntl.fcntl(fd, fcntl.F_SETOWN, owner_pid)
        fcntl.fcntl(fd, _F_SETSIG, LEASE_SIGNAL)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def pass_to(fd: int, owner_pid: int) -> None:
    """Signal breaks to another process from now on."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, owner_pid)


def is_breaking(fd: int) -> bool:
    """Whether somebody waits for this lease, or the kernel broke it already."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK)


def release(fd: int) -> None:
    """Let go: a waiting writer proceeds. Works for every duplicate of the descriptor at once."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def is_same(fd: int, other: int) -> bool:
    """Whether two descriptors are of one open file description, and so of one lease."""
    before, flags = fcntl.fcntl(other, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFL)
    # Means nothing for a regular file, and is seen through every descriptor of the description.
    fcntl.fcntl(fd, fcntl.F_SETFL, flags ^ os.O_NONBLOCK)
    try:
        return fcntl.fcntl(other, fcntl.F_GETFL) != before
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def is_of(fd: int, path: str) -> bool:
    """Whether a descriptor that somebody sent can be of a lease on the snapshot's file at ``path``."""
    return os.fstat(fd).st_ino == _inode(path)


def make_private(path: str, fd: int, size: int, mtime_ns: int, *, donor: str | None = None) -> bool:
    """Replace the snapshot's link ``path`` by a copy of its own, while the lease on ``fd`` still holds writers off.

    Parameters
    ----------
    path : str
        The link inside the snapshot.
    fd : int
        The leased descriptor; it stays open.
    size, mtime_ns : int
        As captured (bytes, nanoseconds).
    donor : str or None
        A private copy of the same inode that was made in this very moment for another snapshot: it is linked, not
        copied.

    Returns
    -------
    bool
        False if somebody (the agent, or the saver for a dead agent) was here before: what is there may be older than
        the inode's content, and must not be anybody's donor.

    Raises
    ------
    SnapshotError
        The copy failed, or the file had been written to (the kernel broke the lease by force). The link is removed,
        so that torn bytes can never be taken for the snapshot.
    """
    if not is_of(fd, path):
        return False
    temporary = f"{path}.private-{os.getpid()}"
    try:
        if donor is not None:
            os.link(donor, temporary)
        else:
            _copy_unchanged(temporary, fd, size, mtime_ns, path)
        os.rename(temporary, path)
        return True
    except (OSError, SnapshotError) as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if not is_of(fd, path):
            return False  # Somebody else was quicker, and let the lease go under our copy: theirs is good.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise SnapshotError(f"A file could not be made private: {os_reason(error)}", where=path) from error
        raise


def _copy_unchanged(temporary: str, fd: int, size: int, mtime_ns: int, path: str) -> None:
    target_fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        copied = copy_content(fd, target_fd, size)
    finally:
        os.close(target_fd)
    status = os.fstat(fd)
    if copied != size or status.st_size != size or status.st_mtime_ns != mtime_ns:
        raise SnapshotError("The file was rewritten before it could be copied", where=path)


def _inode(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return -1

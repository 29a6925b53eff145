"""Leases: copy-on-write in user space for hard-linked files.

A read lease on an inode makes the kernel hold whoever opens it for writing, or truncates it, through any name, until
the holder lets go (or ``/proc/sys/fs/lease-break-time``, 45 s, has passed). The holder uses that moment to copy the
file, to rename the copy over its own link, and to release the lease. See fcntl(2), F_SETLEASE.

The lease belongs to the open file description. It is taken by the saving process and shared with the agent by passing
the descriptor over the socket, so it stands as long as either lives. The agent itself asks for the signal, which it has
blocked, once it has the descriptor (``answer_for``): only there its own number is surely right, as the two may be in
different PID namespaces. Until then a break is signalled to nobody, and is seen by asking (``is_breaking``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat

from ..config import KERNEL_LEASE_BREAK_S

#: A real-time signal: blocked in the agent from its first instruction, queued, and no default action anybody relies on.
LEASE_SIGNAL = getattr(signal, "SIGRTMIN", 0) + 9

#: What a break is signalled with until the agent answers for a lease: ignored unless somebody has a handler for it.
_UNHEARD = signal.SIGURG

_F_SETSIG, _F_GETSIG = 10, 11

#: Whether this process has ever taken one.
_any_taken = False


def break_time_s() -> float:
    """How long the kernel holds a writer before it breaks a lease by force, in seconds."""
    try:
        with open("/proc/sys/fs/lease-break-time", encoding="ascii") as file:
            return float(file.read())
    except (OSError, ValueError):
        return KERNEL_LEASE_BREAK_S


#: How long that is on this machine.
BREAK_TIME_S = break_time_s()


def take(fd: int) -> bool:
    """Take a read lease on an open file. Nobody hears of its break until somebody is to ``answer_for`` it.

    Returns
    -------
    bool
        False where it cannot be had: somebody has the file open for writing, or mapped shared and writable; the file
        belongs to somebody else; the file system has no leases.
    """
    global _any_taken
    _any_taken = True
    try:
        # First: the kernel makes whoever takes a lease the one who is signalled, by default with one that kills.
        fcntl.fcntl(fd, _F_SETSIG, _UNHEARD)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def answer_for(fd: int) -> None:
    """Signal breaks to this process from now on. One that began before is only seen by asking: do that next."""
    # In this order: whoever was signalled before may not have LEASE_SIGNAL blocked, and would die of it.
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, _F_SETSIG, LEASE_SIGNAL)


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
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(fd).st_ino == os.lstat(path).st_ino
    return False


def _forget_in_child() -> None:
    """A forked child must not keep leases: nobody would answer for them once its parent and the agent are dead, and
    each file's next writer would wait until the kernel breaks its lease by force.

    Their marks are looked for, not remembered numbers: no descriptor of anybody else can be closed by this. Only
    closed, as to release one would release the parent's.
    """
    if not _any_taken:
        return
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # The listing's own descriptor; or one that has no signal.
            fd = int(name)
            marked = fcntl.fcntl(fd, _F_GETSIG) in (_UNHEARD, LEASE_SIGNAL)
            if marked and stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)


os.register_at_fork(after_in_child=_forget_in_child)

"""What a forked child must not keep: sockets and locks of ours.

A copy in a child outlives its parent: a lock would stay taken, and whoever waits at the other end of a socket would
never see it end. Children that Python forks close them here (leases: in ``capture/lease.py``). A program that is
started by exec inherits none of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_locks: set[int] = set()


def keep_socket_from_children(sock: socket.socket) -> socket.socket:
    """Close the copy that a child gets; returns the socket."""
    _sockets.add(sock)
    return sock


def keep_lock_from_children(fd: int) -> None:
    """Close the copy that a child gets, until ``close_lock``."""
    _locks.add(fd)


def close_lock(fd: int) -> None:
    """Close a descriptor that was kept from children."""
    _locks.discard(fd)  # First: its number may be somebody else's the moment it is closed.
    os.close(fd)


def _forget_in_child() -> None:
    for sock in list(_sockets):
        sock.close()
    for fd in _locks:
        with contextlib.suppress(OSError):
            os.close(fd)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_in_child)

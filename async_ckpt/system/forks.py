"""What a forked child must not keep: sockets, locks and mapped files of ours.

A copy in a child outlives its parent: a lock would stay taken, memory would not be given back, and whoever waits at the
other end of a socket would never see it end. Children that Python forks close them here (leases: in
``capture/lease.py``). A program that is started by exec inherits none of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import weakref

_map = ctypes.CDLL(None, use_errno=True).mmap
_map.restype = ctypes.c_void_p
_map.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_PROT_NONE = 0

# Of which file each is: whoever closes all descriptors, as daemons do, may have other files under their numbers.
_sockets: weakref.WeakKeyDictionary[socket.socket, tuple[int, int]] = weakref.WeakKeyDictionary()
_locks: dict[int, tuple[int, int]] = {}
_mappings: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()


def keep_socket_from_children(sock: socket.socket) -> socket.socket:
    """Close the copy that a child gets; returns the socket."""
    _sockets[sock] = _file_of(sock.fileno())
    return sock


def keep_lock_from_children(fd: int) -> None:
    """Close the copy that a child gets, until ``close_lock``."""
    _locks[fd] = _file_of(fd)


def close_lock(fd: int) -> None:
    """Close a descriptor that was kept from children."""
    _locks.pop(fd, None)  # First: its number may be somebody else's the moment it is closed.
    os.close(fd)


def keep_mapping_from_children(memory: mmap.mmap, fd: int) -> None:
    """Have a child keep nothing of the mapped file ``fd``: neither its memory nor its lock."""
    _mappings[memory] = _file_of(fd)


def _file_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _forget_in_child() -> None:
    for sock, file in list(_sockets.items()):
        _close_if_it_is(sock.detach(), file)
    for fd, file in _locks.items():
        _close_if_it_is(fd, file)
    _locks.clear()
    if _mappings:
        for memory in list(_mappings):
            _hollow(memory)
        with contextlib.suppress(OSError):
            _replace(set(_mappings.values()))


def _close_if_it_is(fd: int, file: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        if _file_of(fd) == file:
            os.close(fd)


def _hollow(memory: mmap.mmap) -> None:
    """Put nothing in the place of what is mapped. A free place would be taken, and whatever is there is unmapped when
    the child frees its copy of the mapping.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    _map(address, len(memory), _PROT_NONE, flags, -1, 0)


def _replace(files: set[tuple[int, int]]) -> None:
    """Have no descriptor of these files any more: each mapping has one of its own. It closes that number when it is
    freed, and it must not be somebody else's by then: so it is not closed here.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if _file_of(fd) in files:
                os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_forget_in_child)

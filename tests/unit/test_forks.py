"""What a forked child closes: what is ours, under whatever number, and nothing of anybody else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from async_ckpt.system import forks


def is_open_in_a_child(fd: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os.fstat(fd)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_has_no_lock_and_no_socket_of_ours(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    forks.keep_lock_from_children(lock)
    with forks.keep_socket_from_children(socket.socket(socket.AF_UNIX)) as sock:
        try:
            assert not is_open_in_a_child(lock)
            assert not is_open_in_a_child(sock.fileno())
            os.fstat(lock)
            sock.getsockname()
        finally:
            forks.close_lock(lock)


def test_a_child_keeps_what_has_the_number_of_a_lock_or_socket_that_somebody_has_closed(tmp_path: Path) -> None:
    """A daemon closes every descriptor, for one, and opens others: a child without its pipe ends at once."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    forks.keep_lock_from_children(lock)
    sock = forks.keep_socket_from_children(socket.socket(socket.AF_UNIX))
    number = sock.fileno()
    theirs, end = os.pipe()
    try:
        os.dup2(theirs, lock)
        os.dup2(theirs, number)
        assert is_open_in_a_child(lock)
        assert is_open_in_a_child(number)
    finally:
        forks.close_lock(lock)
        sock.close()
        os.close(theirs)
        os.close(end)

"""The names under which an agent is found: its socket's, and its number beside it.

A socket keeps the name under which it is bound: the kernel lists it by that name (``/proc/net/unix``), and programs
that clean temporary directories take a socket under another name for dead. ``agent.sock`` is a symbolic link to it, and
so whoever finds that finds the right ``agent.pid`` beside it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket

from ..ipc import protocol
from ..spool.spool import Spool
from ..system.files import write_atomically

_PREFIX, _SUFFIX = "agent-", ".sock"


def open_socket(spool: Spool) -> socket.socket:
    """A new listening socket, which nobody finds yet. Others in the spool go: the caller holds its lock."""
    for name in os.listdir(spool.directory):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(spool.path(name))
    return protocol.listen(spool.path(f"{_PREFIX}{secrets.token_hex(4)}{_SUFFIX}"))


def name_of(listening: socket.socket) -> str:
    """The name of a listening socket in its directory."""
    return os.path.basename(str(listening.getsockname()))


def name_socket(spool: Spool, name: str, pid: int) -> None:
    """Let others find the agent. Both the process that starts it and the agent itself do this, as one of them may be
    killed before it comes to it.
    """
    if is_named(spool, name):  # The other one was faster.
        return
    write_atomically(spool.path("agent.pid"), b"%d" % pid)
    temporary = spool.path(f"agent.sock.{os.getpid()}-{secrets.token_hex(4)}")
    os.symlink(name, temporary)
    os.rename(temporary, spool.path("agent.sock"))


def is_named(spool: Spool, name: str) -> bool:
    """Whether ``agent.sock`` leads to a socket of this name, and that is there."""
    try:
        return os.readlink(spool.path("agent.sock")) == name and os.path.exists(spool.path("agent.sock"))
    except OSError:
        return False

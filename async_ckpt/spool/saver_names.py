"""Who made what lies in a spool, and whether that process may still live.

The name of what a process makes begins with the process's number. In another PID namespace (a container that shares the
spool, ``unshare --pid``) that number says nothing. A saver there names its namespace as well, and holds a lock for as
long as it lives.
"""

from __future__ import annotations

import contextlib
import os
import re

from ..system import forks
from ..system.files import try_lock
from ..system.processes import process_exists

_NAMESPACE = "/proc/self/ns/pid"

_FOREIGN = re.compile(r"\d+\.\d+")


def own_namespace() -> int:
    """The number of this process's PID namespace; 0 where it cannot be told."""
    with contextlib.suppress(OSError):
        return os.stat(_NAMESPACE).st_ino
    return 0


def note_namespace(directory: str) -> None:
    """Say in a spool that its task is in this process's PID namespace."""
    path, text = os.path.join(directory, "pidns"), str(own_namespace())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(text, path)


def _noted_namespace(directory: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(os.readlink(os.path.join(directory, "pidns")))
    return own_namespace()  # A spool of an earlier version.


class SaverNames:
    """What the names of things in the spool ``directory`` begin with."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._pid, self._name = 0, ""

    def own(self) -> str:
        """For what this process makes.

        Raises
        ------
        OSError
            The lock cannot be had.
        """
        if self._pid != os.getpid():
            self._name = self._take_name()
            self._pid = os.getpid()
        return self._name

    def _take_name(self) -> str:
        namespace = own_namespace()
        if namespace == _noted_namespace(self._directory):
            return str(os.getpid())
        name = f"{os.getpid()}.{namespace}"
        folder = os.path.join(self._directory, "savers")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Until the end of the process. Two of its objects may each have one: the first is enough.
        forks.keep_lock_from_children(fd)
        try_lock(fd)
        return name

    def may_live(self, name: str) -> bool:
        """Whether the process may live whose things begin with ``name``: only one that is surely dead does not."""
        if name.isdecimal():
            foreign = own_namespace() != _noted_namespace(self._directory)
            return foreign or process_exists(int(name))
        if not _FOREIGN.fullmatch(name):
            return False
        try:
            fd = os.open(os.path.join(self._directory, "savers", name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(fd)
        finally:
            os.close(fd)

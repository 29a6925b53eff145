"""Whether a captured file is, now, what was captured of it.

A snapshot is of one moment T if every file was captured before T, and is found as captured after it. What is asked
afterwards depends on what can be trusted:

- A linked file: nothing. Whoever wants to write waits for its lease.
- A copied one: its size and times; and where a write since need not have changed them, its content is read again. That
  is so where somebody had it open for writing or mapped (a write through a mapping moves no time until the page is
  written back), on file systems without leases, where another machine or mount may write, and where the time of the
  last write is the one of this very tick of a coarse clock (git does the same with its index).
- A small one, in the pack: its times and its content, which costs no more than finding out whether it is needed.

The content alone does not tell: what was emptied, written and emptied again is the same as before, and was not in
between.
"""

from __future__ import annotations

import enum
import fcntl
import os
import signal
import stat
import time

from .. import filesystems
from ..files import copy_range, same_content
from ..filesystems import Facts
from ..manifest import LINK, PACKED, FileEntry
from . import lease
from .packing import Pack
from .walk import Item

_F_SETSIG = 10

#: Half of the time after which the kernel lets a writer in whose lease nobody gave up, in seconds.
_SURELY_LEASED_S = lease.BREAK_TIME_S / 2

#: Not blocking: a FIFO that took a file's place must not hold us up.
OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class Now(enum.Enum):
    """What became of a captured file."""

    SAME, GREW, CHANGED = range(3)


class OpenFile:
    """A regular file to capture: descriptor, where it stands, its relative path, and its status when it was opened.

    ``sure`` is set by who captures it: from then on, no write goes by without a new time.
    """

    __slots__ = ("fd", "is_local", "kind", "opened_ns", "path", "source", "status", "sure")

    def __init__(self, fd: int, source: str, path: str) -> None:
        self.fd, self.source, self.path = fd, source, path
        #: Before the status: what is written later has a later time.
        self.opened_ns = time.time_ns()
        self.status = os.fstat(fd)
        self.sure = False
        #: Whether this machine's kernel knows all of it (``filesystems.is_local``).
        self.is_local = False
        #: Of its file system; asked by ``on``.
        self.kind = ""

    def on(self) -> str:
        """The kind of file system it is on."""
        if not self.kind:
            self.kind = filesystems.kind_of(self.fd)
        return self.kind


def is_quiet(file: OpenFile) -> bool:
    """Whether nobody has a file open for writing or mapped, so that each later write changes its time."""
    if not filesystems.times_tell(file.on()):
        return False
    try:
        # For the moment between the two calls in which somebody may break it: a signal that nobody takes notice of.
        fcntl.fcntl(file.fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    lease.release(file.fd)
    return True


class Seen:
    """A captured file, and how to look at it again.

    Parameters
    ----------
    file : OpenFile
        As it was captured; its descriptor, or -1: it is opened again for each look.
    target : str
        Where it was captured to.
    """

    __slots__ = ("_began", "_is_local", "_status", "_sure", "entry", "fd", "item", "kind", "target")

    def __init__(self, item: Item, file: OpenFile, entry: FileEntry, target: str) -> None:
        self.item, self.entry, self.target, self.fd, self.kind = item, entry, target, file.fd, file.kind
        self._status, self._is_local = file.status, file.is_local
        self._sure = file.sure and filesystems.is_settled(self.kind, file.status, file.opened_ns)
        if entry.how == LINK:
            self._began = time.monotonic()

    @property
    def facts(self) -> Facts:
        """When it was captured."""
        return Facts.of(self._status)

    def look(self, pack: Pack | None) -> Now:
        """What it is now. ``pack``: the snapshot's.

        Raises
        ------
        OSError
            It cannot be read any more.
        """
        entry = self.entry
        if entry.how == LINK:
            if time.monotonic() < self._began + _SURELY_LEASED_S or not lease.is_breaking(self.fd):
                return Now.SAME
            return Now.SAME if Facts.of(os.fstat(self.fd))[:3] == self.facts[:3] else Now.CHANGED
        if entry.how == PACKED and self._is_same(pack):
            return Now.SAME
        fd = self.fd if self.fd >= 0 else os.open(self.item.full, OPEN)
        try:
            now, was = filesystems.facts_of(fd, self.kind), self.facts
            if now == was and self._sure:
                return Now.SAME
            if now.ino != was.ino or now.size < entry.size or not self._has_content(fd, pack):
                return Now.CHANGED
            if now.size > entry.size:
                return Now.GREW
            return Now.SAME if now.mtime_ns == was.mtime_ns else Now.CHANGED
        finally:
            if fd != self.fd:
                os.close(fd)

    def _is_same(self, pack: Pack | None) -> bool:
        """In a hurry: of a small file that is open here there are thousands."""
        if pack is None or self.fd < 0 or not self._is_local:
            return False
        status, size = os.fstat(self.fd), self.entry.size
        if status.st_size != size or status.st_mtime_ns != self._status.st_mtime_ns:
            return False
        return pack.has(self.entry, os.pread(self.fd, size, 0))

    def has_facts(self) -> bool:
        """Whether nothing was written since it was captured, as far as its times tell."""
        return filesystems.facts_at(self.item.full, self.kind)[:3] == self.facts[:3]

    def _has_content(self, fd: int, pack: Pack | None) -> bool:
        with filesystems.uncached(fd, self.kind) as now:
            if self.entry.how == PACKED and pack is not None:
                return pack.has(self.entry, os.pread(now, self.entry.size, 0))
            copy = os.open(self.target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return same_content(now, copy, self.entry.size)
            finally:
                os.close(copy)

    def extend(self, file: OpenFile) -> None:
        """Take in what was written to the end of a copied file, as far as ``file``'s status says."""
        copy = os.open(self.target, os.O_RDWR | os.O_CLOEXEC)
        try:
            with filesystems.uncached(file.fd, self.kind) as fd:
                done = copy_range(fd, copy, file.status.st_size - self.entry.size, self.entry.size)
        finally:
            os.close(copy)
        mode, mtime_ns = stat.S_IMODE(file.status.st_mode), file.status.st_mtime_ns
        self.entry = self.entry._replace(size=self.entry.size + done, mode=mode, mtime_ns=mtime_ns)
        self._status, self._sure = file.status, False

    def close(self) -> None:
        """Its descriptor is not needed any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

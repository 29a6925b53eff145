"""A file that is captured, and what has become of it since.

A snapshot is of one moment T if every file was captured before T, and a look at it after T shows what was captured.
What this second look asks depends on what can be trusted:

- Of a linked file: nothing. Whoever wants to write to it waits for its lease.
- Of a copied one: its size and times. Where a write since need not have changed these, its content is read again. That
  is so where somebody had it open for writing or mapped (a write through a mapping moves no time until the page is
  written back), on file systems without leases, where another machine or mount may write, and where the time of the
  last write is the one of this very tick of a coarse clock (git does the same with its index).
- Of a small one, in the pack: its content. To find out whether that is necessary would cost as much.

The content alone does not tell everything: what was emptied, written and emptied again, or a flag that was set and
taken back, is the same as before, and was not in between. So of what is copied by itself, or is as short as flags are,
the times have to be the same as well. For the other small files they are not asked, as that would cost more than to
compare the content. If such a file was written anew with the same content, this content is right for both moments.
"""

from __future__ import annotations

import enum
import os
import stat
import time

from ..manifest import LINK, PACKED, FileEntry
from ..system import filesystems
from ..system.files import copy_range, same_content
from . import lease
from .item import Item
from .pack import Pack

#: How many seconds a lease surely stands: half of the time after which the kernel breaks it by force.
_SURELY_LEASED_S = lease.BREAK_TIME_S / 2

#: The size in bytes up to which a file may be a flag, which somebody sets and takes back.
_FLAG_BYTES = 512

#: Not blocking: a FIFO that has taken a file's place must not hold up the save.
OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class Change(enum.Enum):
    """What became of a file since it was captured."""

    NONE, GROWN, REWRITTEN = range(3)


class OpenFile:
    """A regular file that is captured.

    Parameters
    ----------
    fd : int
        Its descriptor, just opened; this object closes it.
    item : Item
        What the walk says of it.
    snapshot : str
        The directory it is captured to.
    """

    __slots__ = ("_snapshot", "entry", "fd", "is_local", "item", "kind", "leased_s", "opened_ns", "status", "sure")

    #: What was captured.
    entry: FileEntry
    #: When its lease was taken (monotonic clock, seconds).
    leased_s: float

    def __init__(self, fd: int, item: Item, snapshot: str) -> None:
        self.fd, self.item, self._snapshot = fd, item, snapshot
        #: Before the status: what is written later has a later time.
        self.opened_ns = time.time_ns()
        self.status = os.fstat(fd)
        #: Set by who captures it: from then on no write goes by without a new time, but for a coarse clock.
        self.sure = False
        #: Whether this machine's kernel knows all of it (``filesystems.is_local``).
        self.is_local = False
        #: Of its file system; asked by ``on``.
        self.kind = ""

    @property
    def full(self) -> str:
        """Where it stands."""
        return self.item.full

    @property
    def path(self) -> str:
        """Its path in the snapshot."""
        return self.item.path

    @property
    def target(self) -> str:
        """Where it is captured to, if not into the pack."""
        return f"{self._snapshot}/{self.item.path}"

    def on(self) -> str:
        """The kind of file system it is on."""
        if not self.kind:
            self.kind = filesystems.kind_of(self.fd)
        return self.kind

    def change(self, pack: Pack) -> Change:
        """What became of it. ``pack``: the snapshot's.

        Raises
        ------
        OSError
            It cannot be read any more.
        """
        entry, was = self.entry, self.status
        if entry.how == LINK:
            if time.monotonic() < self.leased_s + _SURELY_LEASED_S or not lease.is_breaking(self.fd):
                return Change.NONE
            return Change.NONE if _is_untouched(os.fstat(self.fd), was) else Change.REWRITTEN
        fd = self.fd if self.fd >= 0 else os.open(self.item.full, OPEN)
        try:
            if entry.how == PACKED and self.is_local and entry.size > _FLAG_BYTES:
                data = os.pread(fd, entry.size + 1, 0)
                if not pack.holds(entry, data[: entry.size]):
                    return Change.REWRITTEN
                return Change.NONE if len(data) == entry.size else Change.GROWN
            now = os.fstat(fd) if self.is_local else filesystems.status_of(fd, self.kind)
            untouched = _is_untouched(now, was)
            if untouched and self.sure and now.st_ctime_ns == was.st_ctime_ns and self._shows_writes():
                return Change.NONE
            if not self._has_content(fd, now, pack):
                return Change.REWRITTEN
            if now.st_size > entry.size:
                return Change.GROWN
            return Change.NONE if untouched else Change.REWRITTEN
        finally:
            if fd != self.fd:
                os.close(fd)

    def _shows_writes(self) -> bool:
        return filesystems.shows_next_write(self.kind, self.status, self.opened_ns)

    def is_untouched(self) -> bool:
        """Whether nothing was written since it was captured, as far as its times tell."""
        return _is_untouched(filesystems.status_of(self.item.full, self.kind), self.status)

    def _has_content(self, fd: int, now: os.stat_result, pack: Pack) -> bool:
        """Whether it begins with what was captured."""
        entry = self.entry
        if now.st_ino != self.status.st_ino or now.st_size < entry.size:
            return False
        if entry.how == PACKED and self.is_local:
            return pack.holds(entry, os.pread(fd, entry.size, 0))
        with filesystems.uncached(fd, self.kind) as fresh:
            if entry.how == PACKED:
                return pack.holds(entry, os.pread(fresh, entry.size, 0))
            copy = os.open(self.target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return same_content(fresh, copy, entry.size)
            finally:
                os.close(copy)

    def extend(self) -> bool:
        """Take in what was written to the end of it, a copied file, until now. False: it has not only grown."""
        with open(os.open(self.item.full, OPEN), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.status.st_ino or status.st_size <= self.entry.size:
                return False
            copy = os.open(self.target, os.O_RDWR | os.O_CLOEXEC)
            try:
                with filesystems.uncached(file.fileno(), self.kind) as fd:
                    done = copy_range(fd, copy, status.st_size - self.entry.size, self.entry.size)
            finally:
                os.close(copy)
        mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        self.entry = self.entry._replace(size=self.entry.size + done, mode=mode, mtime_ns=mtime_ns)
        self.status, self.sure = status, False
        return True

    def close(self) -> None:
        """Its descriptor is not needed any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _is_untouched(now: os.stat_result, was: os.stat_result) -> bool:
    return now.st_mtime_ns == was.st_mtime_ns and now.st_size == was.st_size and now.st_ino == was.st_ino


def is_quiet(file: OpenFile) -> bool:
    """Whether nobody has a file open for writing or mapped, so that each later write changes its time."""
    if not filesystems.times_tell(file.on()) or not lease.take(file.fd):
        return False
    lease.release(file.fd)
    return True

"""The memory in which a state is staged, and from which the agent's uploader sends it.

A buffer is a file on a tmpfs, in an annex of the spool. A saved state is a hard link of it in a snapshot: when the
snapshot is removed, because the store has it, the buffer has one name left, and is used again. So no message says that
a buffer is free, and what was staged outlives the process that did it, and the agent.

Where memory does not suffice, the state goes into a file of the spool, which is used once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import re
import secrets
import threading
import weakref
from collections.abc import Callable

from ..config import HOST_MEMORY_MARGIN, Config
from ..errors import SpoolError, os_hint, os_reason
from ..spool.spool import Spool
from ..system import forks
from ..system.files import preallocate, try_lock
from ..system.memory import available_bytes

log = logging.getLogger(__name__)

_madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
_MADV_POPULATE_WRITE = 23
#: So many bytes are mapped at a time: others of this process who map memory wait meanwhile.
_POPULATED = 16 << 20
#: So often a buffer is made anew that another task has taken away, as both looked for room at the same moment.
_TRIES = 5


class Buffer:
    """A file of ``size`` bytes, mapped into this process if it lies in memory.

    Parameters
    ----------
    path : str
        Not there yet.
    in_memory : bool
        Map it; else it is written to with ``fd``.

    Raises
    ------
    OSError
        There is no room for it.
    """

    def __init__(self, path: str, size: int, *, in_memory: bool) -> None:
        self.path, self.size, self.in_memory = path, size, in_memory
        #: Nobody else may stage in it now.
        self.taken = True
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._remove = weakref.finalize(self, _remove, path, self.fd, os.getpid())
        self.memory: mmap.mmap | None = None
        #: Where it is mapped.
        self.address = 0
        # For as long as it is locked, its process lives; other tasks look at that (see Snapshots.new_buffer).
        forks.keep_lock_from_children(self.fd)
        try:
            if not try_lock(self.fd) or not self._is_named():
                raise FileNotFoundError(errno.ENOENT, "another task took it for a dead one's", path)
            # All of it now: a page that cannot be had later would end the process with SIGBUS.
            preallocate(self.fd, size)
            if in_memory and size:
                self.memory = mmap.mmap(self.fd, size)
                self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
                forks.keep_mapping_from_children(self.memory, self.fd)
        except BaseException:
            self.drop()
            raise

    @property
    def is_free(self) -> bool:
        """Whether nothing that was staged in it is needed any more: it has its own name, and no other."""
        return not self.taken and self._is_named() and os.fstat(self.fd).st_nlink == 1

    @property
    def is_lost(self) -> bool:
        """Whether something has removed its name: it cannot be told any more when a snapshot needs it no longer."""
        return not self.taken and not self._is_named()

    def _is_named(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._remove.alive and os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        return False

    def populate(self) -> None:
        """Map all pages now, without the interpreter's lock, instead of one by one when they are written to."""
        if self.memory is None or _madvise is None:
            return
        for start in range(0, self.size, _POPULATED):
            count = min(_POPULATED, self.size - start)
            if _madvise(ctypes.c_void_p(self.address + start), ctypes.c_size_t(count), _MADV_POPULATE_WRITE) != 0:
                return  # An older kernel: then one by one.

    def move_to(self, target: str) -> None:
        """Give what was staged a name in a snapshot, on the same file system."""
        if self.in_memory:
            os.link(self.path, target)
        else:
            os.rename(self.path, target)

    def give_back(self) -> None:
        """Who has taken it needs it no more. What lies in the spool is not used again."""
        self.taken = False
        if not self.in_memory:
            self.drop()

    def drop(self) -> None:
        """Remove its name; the memory goes with its last one."""
        self._remove()


def _remove(path: str, fd: int, pid: int) -> None:
    if os.getpid() != pid:  # A child that was forked: it is not its buffer.
        return
    forks.close_lock(fd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class Buffers:
    """Those of one process.

    Parameters
    ----------
    on_new, on_gone : callable
        Called with each buffer in memory that is made, and before it is dropped: it may be pinned for a device.
    """

    def __init__(
        self,
        spool: Spool,
        config: Config,
        on_new: Callable[[Buffer], None] = lambda buffer: None,
        on_gone: Callable[[Buffer], None] = lambda buffer: None,
    ) -> None:
        self._spool, self._config = spool, config
        self._on_new, self._on_gone = on_new, on_gone
        self._lock = threading.Lock()
        self._buffers: list[Buffer] = []
        #: The largest state so far, in bytes.
        self._largest = 0
        self._said: set[str] = set()

    @property
    def bytes_in_memory(self) -> int:
        with self._lock:
            return sum(buffer.size for buffer in self._buffers)

    def take(self, size: int, most_bytes: int = 0) -> Buffer:
        """A buffer for a state of ``size`` bytes: one that is free, a new one in memory, or one in the spool. Who has
        taken it gives it back.

        Parameters
        ----------
        most_bytes : int
            Of memory for all buffers; 0: ``max_host_bytes``, or twice the largest state.

        Raises
        ------
        SpoolError
            There is room for it neither in memory nor on the disk. Nothing was copied.
        """
        with self._lock:
            self._largest = max(self._largest, size)
            buffer, why = self._in_memory(size, most_bytes)
            if buffer is not None:
                return buffer
        kind = re.sub(r"\d+", "", why)  # Said once, however the numbers change.
        if kind and kind not in self._said:
            self._said.add(kind)
            log.info(f"The state is staged in the spool, not in memory: {why}")
        return self.in_spool(size, why)

    def _in_memory(self, size: int, most_bytes: int) -> tuple[Buffer | None, str]:
        """One in memory, or None, and why it cannot be; no reason where all are in use, as that passes."""
        for buffer in [buffer for buffer in self._buffers if buffer.is_lost]:
            self._let_go(buffer)
        for buffer in self._buffers:
            if buffer.size == size and buffer.is_free:
                buffer.taken = True
                return buffer, ""
        folder = self._config.state_dir
        if not folder:
            return None, ""
        most = most_bytes or self._config.max_host_bytes or 2 * self._largest
        if size > most:
            return None, f"max_host_bytes={most} is less than its {size} bytes"
        for buffer in [buffer for buffer in self._buffers if buffer.is_free]:  # Of another size.
            self._let_go(buffer)
        if sum(buffer.size for buffer in self._buffers) + size > most:
            return None, ""
        if why := _why_no_room(folder, size):
            return None, why
        try:
            buffer = self._new(folder, size)
        except OSError as error:
            return None, f"{folder}: {os_reason(error)}"
        except SpoolError as error:
            return None, str(error)
        self._buffers.append(buffer)
        self._on_new(buffer)
        return buffer, ""

    def _new(self, folder: str, size: int) -> Buffer:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # Another task took it for a dead one's, before it was locked.
                return Buffer(self._spool.snapshots.new_buffer(folder), size, in_memory=True)
        return Buffer(self._spool.snapshots.new_buffer(folder), size, in_memory=True)

    def in_spool(self, size: int, why: str) -> Buffer:
        """One in the spool, on the disk; ``why`` there is none in memory, for the error."""
        # Beside the snapshot that it becomes a part of.
        path = self._spool.snapshots.new_directory(self._spool.directory) + f".{secrets.token_hex(4)}"
        try:
            facts = os.statvfs(self._spool.directory)
            if size > facts.f_bavail * facts.f_frsize:  # Else the file system would first fill itself up.
                raise OSError(errno.ENOSPC, f"{facts.f_bavail * facts.f_frsize} bytes are left")
            return Buffer(path, size, in_memory=False)
        except OSError as error:
            beside = f" In memory there is none either: {why}." if why else ""
            raise SpoolError(
                f"There is no room for a state of {size} bytes: {os_reason(error)}.{beside}",
                where=os.path.dirname(path), hint=os_hint(error),
            ) from error  # fmt: skip

    def each(self, function: Callable[[Buffer], None]) -> None:
        """Call a function with each buffer in memory."""
        with self._lock:
            for buffer in self._buffers:
                function(buffer)

    def spare(self, size: int, most_bytes: int = 0) -> None:
        """See that the next state of this size finds a buffer, if that can be had in memory now."""
        with self._lock:
            if not any(buffer.is_free for buffer in self._buffers):
                buffer, _ = self._in_memory(size, most_bytes)
                if buffer is not None:
                    buffer.populate()
                    buffer.give_back()

    def _let_go(self, buffer: Buffer) -> None:
        self._buffers.remove(buffer)
        self._on_gone(buffer)
        buffer.drop()


def _why_no_room(folder: str, size: int) -> str:
    """Why ``size`` bytes are not taken in memory; empty: they may be."""
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {os_reason(error)}"
    free = facts.f_bavail * facts.f_frsize
    if facts.f_blocks and size > free:
        return f"{folder} has {free} bytes left, and the state has {size}"
    available = available_bytes()
    if available is not None and size > available * (1 - HOST_MEMORY_MARGIN):
        return f"{available} bytes of memory are available, and the state has {size}"
    return ""

"""Small operations on local files that several rooms need: clone, copy, write atomically, digest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import forks
from .config import CHUNK_BYTES
from .errors import UsageError

try:  # Four times faster; a pod may be without it, and the agent's control plane does without.
    from zlib_ng.zlib_ng import crc32 as crc32
except ImportError:
    from zlib import crc32 as crc32

#: ``FICLONE`` of linux/fs.h: share the source's extents, copy on write.
FICLONE = 0x40049409

#: Errors of FICLONE and copy_file_range that mean "not here", as opposed to "failed".
_NOT_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}

#: Errors of link(2) that mean "not between these two": other file system, not permitted, too many links, unsupported.
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})

#: Errors of O_TMPFILE, and of linking through /proc, that mean "not here".
_NO_TMPFILE = NO_LINK | {errno.EISDIR, errno.ENOENT, errno.EINVAL}

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)

_BUFFER = 1 << 20

#: Of a read that is only digested: it stays in the processor's cache.
_DIGEST_BUFFER = 256 << 10


class _Buffers(threading.local):
    """One buffer a thread, on a page of its own: reading into memory that is not aligned takes several times as long.

    Private, as anonymous maps of Python are not: a forked child would write into its parent's.
    """

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.view = memoryview(mmap.mmap(-1, _DIGEST_BUFFER, flags=flags))


_buffers = _Buffers()


def occupy_standard_streams() -> None:
    """Have the descriptors 0 to 2 open, whatever closed them: ours would get these numbers, and whatever in the process
    prints, or puts something into their place, would hit a socket, a lock or a lease.
    """
    with contextlib.suppress(OSError):  # None is left to be had, or there is no such device: nothing can be done.
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            continue
        os.close(fd)


def given_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path that a user gave, made absolute.

    Raises
    ------
    UsageError
        It is empty, and would mean the whole working directory; or no path can have its characters.
    """
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise UsageError(
            f"{text!r} is not a path", hint="Perhaps a variable is empty. The working directory itself is '.'"
        )
    return os.path.abspath(text)


def set_mtime(path: str, mtime_ns: int) -> None:
    """Set a modification time in nanoseconds; 0, for not known, leaves it as it is.

    Where the file system takes no times it stays as it is as well: the content is what counts.
    """
    if mtime_ns:
        with contextlib.suppress(OSError, OverflowError):
            os.utime(path, ns=(mtime_ns, mtime_ns))


def clone(source_fd: int, target_fd: int) -> bool:
    """Reflink a whole file; False where the file system cannot."""
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


def copy_range(source_fd: int, target_fd: int, count: int, offset: int = 0) -> int:
    """Copy up to ``count`` bytes at ``offset`` to the same offset, inside the kernel where it can.

    Returns
    -------
    int
        Bytes copied; fewer than ``count`` only at the end of the source.
    """
    done = 0
    in_kernel = True
    while done < count:
        if in_kernel:
            try:
                moved = os.copy_file_range(source_fd, target_fd, count - done, offset + done, offset + done)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(source_fd, min(_BUFFER, count - done), offset + done)
            moved = len(data)
            pwrite_all(target_fd, data, offset + done)
        if moved == 0:
            break
        done += moved
    return done


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """``os.pwrite`` until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def preallocate(fd: int, size: int) -> None:
    """Give an empty file its size, and the blocks for it where the file system can: writes are faster then, and a disk
    without room for it says so at once (``OSError``).
    """
    # Not os.posix_fallocate, which writes to every block where the file system cannot.
    if _fallocate is None or _fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno() if _fallocate is not None else errno.ENOSYS
        if number not in _NOT_HERE:
            raise OSError(number, os.strerror(number))
        os.ftruncate(fd, size)


def copy_content(source_fd: int, target_fd: int, size: int, *, reflink: bool = True) -> int:
    """Give ``target_fd`` the first ``size`` bytes of the source: cloned if possible, copied if not."""
    if reflink and size and clone(source_fd, target_fd):
        return min(size, os.fstat(target_fd).st_size)
    return copy_range(source_fd, target_fd, size)


def digest_fd(fd: int, size: int) -> list[int]:
    """CRC-32 of every ``CHUNK_BYTES`` of an open file."""
    return [chunk_crc(fd, offset, min(CHUNK_BYTES, size - offset)) for offset in range(0, size, CHUNK_BYTES)]


def chunk_crc(fd: int, offset: int, count: int) -> int:
    """CRC-32 of ``count`` bytes at ``offset``; of fewer where the file ends before."""
    crc, end, buffer = 0, offset + count, _buffers.view
    while offset < end:
        got = os.preadv(fd, [buffer[: end - offset]], offset)
        if not got:
            break
        crc = crc32(buffer[:got], crc)
        offset += got
    return crc


def write_atomically(path: str, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data``: readers see the old content or the new one."""
    directory = os.path.dirname(path)
    fd, temporary = tempfile.mkstemp(dir=directory, prefix=".tmp-")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_new(path: str, data: bytes, staged: str) -> None:
    """Make a file appear under a name that is not taken, with all its content from the first moment on.

    It is written without a name, and then linked, which takes one turn at the lock of a folder. Under a temporary name
    and renamed it takes four, and where many processes write on a busy machine each may cost a second.

    Parameters
    ----------
    staged : str
        A name of the caller's own for it, on the same file system; only used where files cannot be without one.

    Raises
    ------
    OSError
        It could not be written; there is no file.
    """
    folder = os.path.dirname(staged)
    try:
        with open(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            # The number of a descriptor, which one does not matter as the path is absolute: else Python would link the
            # symbolic link itself.
            os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=file.fileno(), follow_symlinks=True)
        return
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    try:
        with open(staged, "wb") as file:
            file.write(data)
        os.rename(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise


@contextlib.contextmanager
def locked(path: str, *, timeout_s: float) -> Iterator[int]:
    """Hold ``flock`` on a lock file (made if missing) for the block; yields its descriptor.

    Raises
    ------
    TimeoutError
        Somebody else held the lock for the whole ``timeout_s`` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    forks.keep_lock_from_children(fd)
    try:
        wait_for(lambda: try_lock(fd), timeout_s, f"the lock {path}")
        yield fd
    finally:
        unlock(fd)
        forks.close_lock(fd)


def try_lock(fd: int) -> bool:
    """Take ``flock`` without waiting; False where somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Let go of ``flock``. Closing is not enough: a child that C forked meanwhile has a copy of the descriptor."""
    with contextlib.suppress(OSError):  # A file system without locks.
        fcntl.flock(fd, fcntl.LOCK_UN)


def process_exists(pid: int) -> bool:
    """Whether a process of this number runs, whoever owns it; one that is dead and not yet waited for does not.

    None has a number below 1: 0 is how the kernel names one in another PID namespace.
    """
    if pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return (_stat(pid) or ["?"])[0] not in ("Z", "X")


def parent_of(pid: int) -> int | None:
    """Who started a process, or has taken it over since; None: there is no such process."""
    found = _stat(pid)
    return int(found[1]) if found else None


def began_at(pid: int) -> int | None:
    """When a process was started, in ticks since this machine was: no two of one number have the same."""
    found = _stat(pid)
    return int(found[19]) if found else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, from the state on; empty: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Poll something no event tells of (a lock of another process) until it is true.

    Raises
    ------
    TimeoutError
        It was not within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    pause = 0.001
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)

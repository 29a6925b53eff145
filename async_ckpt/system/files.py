"""Small operations on local files that several rooms need: clone, copy, write atomically, digest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..config import CHUNK_BYTES
from ..errors import UsageError
from . import forks
from .undisturbed import go_on

#: ``FICLONE`` of linux/fs.h: share the source's extents, copy on write.
FICLONE = 0x40049409

#: Errors of FICLONE and copy_file_range that reading and writing would meet as well. After any other one that is done
#: instead: each file system has its own (EAGAIN on ZFS, while there is something not written to the disk).
_ALSO_ELSEWHERE = {errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}

#: Errors of lseek and fallocate that mean "not here", as opposed to "failed".
_NOT_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}

#: Errors of link(2) that mean "not between these two": other file system, not permitted, too many links, unsupported.
NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})

#: Errors of O_TMPFILE, and of linking through /proc, that mean "not here".
_NO_TMPFILE = NO_LINK | {errno.EISDIR, errno.ENOENT, errno.EINVAL}

_fallocate, _renameat2 = (getattr(ctypes.CDLL(None, use_errno=True), name, None) for name in ("fallocate", "renameat2"))

#: ``mode`` of fallocate(2).
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
#: A directory and ``flags`` of renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: Only so many zeros or more become a hole, in bytes.
_LEAST_HOLE = 16 << 10

_BUFFER = 1 << 20

#: How much is copied in one call, in bytes: less than a second's work. In between a copy may be ended.
_COPIED_BYTES = 64 << 20


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


def set_mode(path: str, mode: int) -> None:
    """Set permissions. Where the file system has none (vfat, many FUSE mounts) they stay as they are: the content is
    what counts.
    """
    with contextlib.suppress(OSError):
        os.chmod(path, mode)


def clone(source_fd: int, target_fd: int, size: int) -> bool:
    """Reflink a file, and keep its first ``size`` bytes; False where the file system cannot, or there is nothing to."""
    if not size:
        return False
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    except OSError as error:
        if error.errno in _ALSO_ELSEWHERE:
            raise
        return False
    if os.fstat(target_fd).st_size > size:
        os.ftruncate(target_fd, size)
    return True


def can_clone(folder: str) -> bool:
    """Whether files of a directory can be cloned in it; tried with two that have no name."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file, tempfile.TemporaryFile(dir=folder) as copy:
            file.write(bytes(4096))
            file.flush()
            return clone(file.fileno(), copy.fileno(), 4096)
    except OSError:
        return False


def copy_range(source_fd: int, target_fd: int, count: int, offset: int = 0) -> int:
    """Copy up to ``count`` bytes at ``offset`` to the same offset, inside the kernel where it can. Where the target
    ends before, the source's holes stay holes.

    Returns
    -------
    int
        Bytes copied; fewer than ``count`` only at the end of the source.
    """
    status = os.fstat(source_fd)
    end = offset + count
    if status.st_blocks * 512 >= status.st_size or os.fstat(target_fd).st_size > offset:
        return _copy_bytes(source_fd, target_fd, offset, end) - offset
    end, at = min(end, status.st_size), offset
    while at < end:
        data, hole = _next_data(source_fd, at, end)
        if data < hole and (at := _copy_bytes(source_fd, target_fd, data, hole)) < hole:
            return at - offset
        at = hole
    if at > offset and os.fstat(target_fd).st_size < at:
        os.ftruncate(target_fd, at)
    return max(at - offset, 0)


def _next_data(fd: int, at: int, end: int) -> tuple[int, int]:
    """Where data begins and ends, from ``at`` on; both ``end`` where there is none before it."""
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
        return (data, min(os.lseek(fd, data, os.SEEK_HOLE), end)) if data < end else (end, end)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end, end
        if error.errno not in _NOT_HERE:
            raise
        return at, end


def _copy_bytes(source_fd: int, target_fd: int, at: int, end: int) -> int:
    """Copy from ``at`` to ``end``, and return where the source ended if that is before."""
    in_kernel = True
    while at < end:
        go_on()
        if in_kernel:
            try:
                moved = os.copy_file_range(source_fd, target_fd, min(_COPIED_BYTES, end - at), at, at)
            except OSError as error:
                if error.errno in _ALSO_ELSEWHERE:
                    raise
                in_kernel = False
                continue
        else:
            data = os.pread(source_fd, min(_BUFFER, end - at), at)
            moved = len(data)
            pwrite_all(target_fd, data, at)
        if moved == 0:
            break
        at += moved
    return at


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """``os.pwrite`` until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_sparsely(fd: int, data: bytes, offset: int) -> None:
    """As ``pwrite_all``; nothing but zeros becomes a hole where the file system can."""
    zeros = len(data) >= _LEAST_HOLE and not data[0] and not data[-1] and data.count(0) == len(data)
    if not (zeros and os.fstat(fd).st_size >= offset + len(data) and _punch(fd, offset, len(data))):
        pwrite_all(fd, data, offset)


def _punch(fd: int, offset: int, count: int) -> bool:
    where = ctypes.c_int64(offset), ctypes.c_int64(count)
    return _fallocate is not None and _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, *where) == 0


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


def copy_content(source_fd: int, target_fd: int, size: int) -> int:
    """Give ``target_fd`` the first ``size`` bytes of the source, cloned if possible. Returns how many there are."""
    if clone(source_fd, target_fd, size):
        return os.fstat(target_fd).st_size
    return copy_range(source_fd, target_fd, size)


def same_content(fd: int, other: int, size: int) -> bool:
    """Whether two files have the same first ``size`` bytes."""
    for at in range(0, size, CHUNK_BYTES):
        go_on()
        end = min(at + CHUNK_BYTES, size)
        if is_hole(fd, at, end) and is_hole(other, at, end):
            continue
        while at < end:
            one, two = os.pread(fd, min(_BUFFER, end - at), at), os.pread(other, min(_BUFFER, end - at), at)
            if one != two or not one:
                return False
            at += len(one)
    return True


def is_hole(fd: int, at: int, end: int) -> bool:
    """Whether the file system says that there is nothing but zeros between two offsets of a file."""
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_size >= end and _next_data(fd, at, end)[0] >= end
    return False


def folders_below(
    path: str, failed: Callable[[OSError], None] = lambda error: None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below ``path``, itself first: (its path, names of folders in it, other names), as ``os.walk``, and
    without a call inside a call for each level. ``failed`` hears of what cannot be listed.
    """
    pending = [path]
    while pending:
        folder = pending.pop()
        folders: list[str] = []
        others: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    (folders if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
        except OSError as error:
            failed(error)
            continue
        yield folder, folders, others
        pending += [os.path.join(folder, name) for name in folders]


def remove_tree(path: str) -> None:
    """Remove a directory, read-only folders in it included, however deep; one that is gone is no error.

    What is in a folder of a folder is moved up before: paths stay short, and nothing calls itself.
    """
    pending = [path]
    while pending:
        with contextlib.suppress(FileNotFoundError):
            if folders := _remove_files(pending[-1], path):
                pending += folders
                continue
            os.rmdir(pending[-1])
        pending.pop()


def _remove_files(folder: str, top: str) -> list[str]:
    """Remove what is no folder from a folder, and move the folders in it up to ``top``; returns their paths."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(folder, flags)
    except PermissionError:
        _make_writable(folder)
        fd = os.open(folder, flags)
    folders = []
    try:
        with os.scandir(fd) as found:
            entries = list(found)
        if entries:
            _make_writable(folder)
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                elif folder == top:
                    folders.append(os.path.join(top, entry.name))
                else:
                    _make_writable(entry.name, fd)
                    folders.append(os.path.join(top, secrets.token_hex(8)))
                    os.rename(entry.name, folders[-1], src_dir_fd=fd)
    finally:
        os.close(fd)
    return folders


def _make_writable(folder: str, fd: int | None = None) -> None:
    """Let its owner do everything with a folder (in the open one ``fd``)."""
    mode = os.stat(folder, dir_fd=fd, follow_symlinks=False).st_mode
    if mode & 0o700 != 0o700:
        os.chmod(folder, 0o700, dir_fd=fd)


def take_place(source: str, target: str) -> None:
    """Give a file the name of another one, which loses it, as a rename does, but without a wait for the disk.

    ext4 begins to write a file out before it lets it replace another one, which takes half a second for a gigabyte. Two
    names are exchanged at once. A process that dies in between leaves the other file under ``source``.

    Raises
    ------
    OSError
        It could not; both have their names.
    """
    old, new = os.fsencode(source), os.fsencode(target)
    if _renameat2 is None or _renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE):
        os.rename(source, target)  # There is nothing to exchange it with, or the file system knows no exchange.
        return
    with contextlib.suppress(OSError):  # It is swept away later.
        os.unlink(source)


def write_atomically(path: str, data: bytes) -> None:
    """Replace ``path`` with ``data``: readers see the old content or the new one."""
    _write_and_rename(path, data, os.path.join(os.path.dirname(path), f".tmp-{secrets.token_hex(8)}"))


def _write_and_rename(path: str, data: bytes, staged: str) -> None:
    try:
        with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.rename(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
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
    _write_and_rename(path, data, staged)


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

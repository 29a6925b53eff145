"""Copies bytes from file to file inside the kernel, and sees that they reach the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from ..config import CHUNK_BYTES
from ..system.digests import ChunkDigests, digest_chunk
from ..system.files import clone, copy_range

#: Threads that digest a file while another copies it, and chunks they may be behind.
_DIGESTERS, _BEHIND = 2, 4

_SYNC_FILE_RANGE_WRITE = 2

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


def copied_chunks(
    source_fd: int, target_fd: int, size: int, *, digest: bool = True, known_again: bool = False, durable: bool = False
) -> Generator[tuple[int, int, ChunkDigests], None, None]:
    """Clone or copy the first ``size`` bytes of a file; yields (offset, bytes copied, their digests) for every
    ``CHUNK_BYTES``. A chunk of fewer bytes than it should have is the last: the source ended.

    Copying takes one thread whatever is done (the file is locked while it is written to), so the next chunk is copied
    while the last ones are digested. Close the generator before the descriptors.

    Parameters
    ----------
    digest : bool
        Read the copy back for the digests; the CRC is 0 without.
    known_again : bool
        Of which kind they are; see ``Digester``.
    durable : bool
        ``sync_file`` will follow: the disk begins to write at once.
    """
    cloned = clone(source_fd, target_fd, size)

    def copy(offset: int) -> int:
        count = min(CHUNK_BYTES, size - offset)
        if not cloned:
            count = copy_range(source_fd, target_fd, count, offset)
            if durable and size > CHUNK_BYTES:
                _begin_writing(target_fd, offset, count)
        return count

    def digests(offset: int, count: int) -> ChunkDigests:
        return digest_chunk(target_fd, offset, count, known_again=known_again) if digest else ChunkDigests(0, "")

    if size <= CHUNK_BYTES:  # Handing it to another thread would take longer than the digest.
        for offset in range(0, size, CHUNK_BYTES):
            count = copy(offset)
            yield offset, count, digests(offset, count)
        return
    behind: deque[tuple[int, int, Future[ChunkDigests]]] = deque()
    with ThreadPoolExecutor(_DIGESTERS, thread_name_prefix="async_ckpt-digest") as digesters:
        for offset in range(0, size, CHUNK_BYTES):
            count = copy(offset)
            behind.append((offset, count, digesters.submit(digests, offset, count)))
            while len(behind) > _BEHIND or behind[0][2].done():
                yield _result(behind.popleft())
                if not behind:
                    break
            if offset + count < min(offset + CHUNK_BYTES, size):
                break
        while behind:
            yield _result(behind.popleft())


def _result(chunk: tuple[int, int, Future[ChunkDigests]]) -> tuple[int, int, ChunkDigests]:
    return chunk[0], chunk[1], chunk[2].result()


def _begin_writing(fd: int, offset: int, count: int) -> None:
    """Have the disk write while we go on. Advice: its failure is seen by ``sync_file``."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)


def sync_file(fd: int) -> None:
    """Return when a file's content is on the disk; at once where the file system knows no such thing."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def sync_folder(path: str) -> None:
    """Return when the names in a folder are on the disk; a folder that was removed meanwhile has none."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file(fd)
        finally:
            os.close(fd)

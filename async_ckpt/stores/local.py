"""A directory as a store; usually the root of Metaflow's local datastore, which reads the same files.

Objects are written under a temporary name in ``<root>/.async-ckpt-tmp`` (out of the way of everybody who lists the
datastore) and renamed. What a killed process left there is removed a day later.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeVar

from anyio import to_thread

from ..config import CHUNK_BYTES, Config
from ..errors import IntegrityError, NotFound, StoreError, TransientStoreError, UsageError, os_hint, os_reason
from ..files import chunk_crc, clone, copy_range, pwrite_all
from ._backoff import Counted
from .base import Entry, Progress, Source, Store, check_key, no_progress

T = TypeVar("T")

_TEMPORARY = ".async-ckpt-tmp"
_TEMPORARY_LIFE_S = 24 * 3600.0
_PIECE = 1 << 20
_PAGE = 1000
_TRIES = 5

#: The same for making a folder that others remove when it is empty: each try takes microseconds.
_FOLDER_TRIES = 500

#: No such object: the path, or a folder on the way to it, is missing, or something else lies there.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
#: May pass by itself: network file systems that lost a handle or a server, a busy mount, a table that is full just now.
_TRANSIENT = (
    errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENFILE, errno.EHOSTDOWN,
    errno.ENOTCONN, errno.ECONNRESET,
)  # fmt: skip


class LocalStore(Store):
    """Objects are files below ``root``.

    Parameters
    ----------
    root : str
        Absolute directory; made when the first object is written.
    config : Config
        For symmetry with other stores.
    """

    def __init__(self, root: str, config: Config = Config()) -> None:  # noqa: B008 - immutable
        self.root = os.path.abspath(root)
        self._temporary = os.path.join(self.root, _TEMPORARY)
        self._swept = False

    async def put_source(self, key: str, source: Source, progress: Progress = no_progress) -> list[int]:
        path = self._path(key)
        with _mapped("write", path):
            fd, temporary = await self._thread(self._new_file)
            try:
                if source.path is None:
                    crcs = []
                    for offset in range(0, source.size, CHUNK_BYTES):
                        crcs.append(await self._thread(_write_chunk, source, fd, offset))
                        progress(min(CHUNK_BYTES, source.size - offset))
                else:
                    crcs = list(await self._copy(source.path, source.size, fd, progress))
                await self._thread(self._publish, temporary, path)
                return crcs
            finally:
                _discard(fd, temporary)

    async def put_bytes(self, key: str, data: bytes) -> None:
        path = self._path(key)

        def write() -> None:
            fd, temporary = self._new_file()
            try:
                pwrite_all(fd, data, 0)
                self._publish(temporary, path)
            finally:
                _discard(fd, temporary)

        with _mapped("write", path):
            await self._thread(write)

    async def get_bytes(self, key: str) -> bytes:
        path = self._path(key)

        def read() -> bytes:
            with open(path, "rb") as file:
                return file.read()

        with _mapped("read", path):
            return await self._thread(read)

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        path = self._path(key)
        with _mapped("read", path):
            source_fd = await self._thread(_open_object, path)
        try:
            found = os.fstat(source_fd).st_size
            if size is not None and found != size:
                raise IntegrityError(f"{key} has {found} bytes instead of {size}", where=path)
            with _mapped("write", destination):
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                target_fd = await self._thread(os.open, destination, flags, 0o666)
            try:
                with _mapped("write", destination):
                    cloned = await self._thread(_clone, source_fd, target_fd, found)
                    for index, offset in enumerate(range(0, found, CHUNK_BYTES)):
                        count = min(CHUNK_BYTES, found - offset)
                        if not cloned and await self._thread(copy_range, source_fd, target_fd, count, offset) != count:
                            raise IntegrityError(f"{key} became shorter while it was read", where=path)
                        if crc32 is not None:
                            crc = await self._thread(chunk_crc, target_fd, offset, count)
                            if index >= len(crc32) or crc != crc32[index]:
                                raise IntegrityError(f"{key} is damaged at byte {offset}", where=path)
                        progress(count)
            finally:
                os.close(target_fd)
            if crc32 is not None and len(crc32) != -(-found // CHUNK_BYTES):
                raise IntegrityError(f"{key} has {found} bytes, which are not those of its digest", where=path)
            return found
        finally:
            os.close(source_fd)

    async def size(self, key: str) -> int:
        path = self._path(key)

        def measure() -> int:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "It is not a file")
            return status.st_size

        with _mapped("read", path):
            return await self._thread(measure)

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        path = self._path(prefix)
        entries = self._walk(path)
        with _mapped("list", path):
            while page := await self._thread(lambda: list(itertools.islice(entries, _PAGE))):
                for entry in page:
                    yield entry

    async def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            try:
                os.unlink(path)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                return
            # Folders are no objects: others who list this directory must not take an empty one for a checkpoint.
            folder = os.path.dirname(path)
            with contextlib.suppress(OSError):
                while folder != self.root:
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)

        with _mapped("remove", path):
            await self._thread(remove)

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    def _path(self, key: str) -> str:
        if check_key(key).split("/", 1)[0] == _TEMPORARY:
            raise UsageError(f"The key {key!r} lies in the store's own folder for temporary files")
        return os.path.join(self.root, key)

    @staticmethod
    async def _thread(function: Callable[..., T], *args: object) -> T:
        # Not abandoned on cancellation: descriptors stay valid until the piece of work that uses them is over.
        return await to_thread.run_sync(function, *args)

    async def _copy(self, source: str, size: int, fd: int, progress: Progress) -> Sequence[int]:
        """Copy a snapshot's file, again if it was made private meanwhile (see ``async_ckpt.source``)."""
        counted = Counted(progress)
        for _ in range(_TRIES):
            source_fd = await self._thread(_open_captured, source)
            try:
                crcs = await self._copy_once(source_fd, size, fd, counted)
                still_named = await self._thread(_names, source, source_fd)
            finally:
                os.close(source_fd)
            if still_named:
                if crcs is None:
                    break
                return crcs
            counted.take_back()
            await self._thread(os.ftruncate, fd, 0)
        raise IntegrityError(
            f"The captured file has not its {size} bytes any more", where=source,
            hint="Something outside the trainer changed the spool",
        )  # fmt: skip

    async def _copy_once(self, source_fd: int, size: int, fd: int, progress: Progress) -> Sequence[int] | None:
        """CRCs of the chunks, read back from the copy; None if the source has not ``size`` bytes."""
        if os.fstat(source_fd).st_size != size:
            return None
        cloned = await self._thread(_clone, source_fd, fd, size)
        crcs = []
        for offset in range(0, size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, size - offset)
            if not cloned and await self._thread(copy_range, source_fd, fd, count, offset) != count:
                return None
            crcs.append(await self._thread(chunk_crc, fd, offset, count))
            progress(count)
        return crcs if os.fstat(fd).st_size == size else None

    def _new_file(self) -> tuple[int, str]:
        """A new temporary file: its descriptor and path."""
        if not self._swept:
            self._swept = True
            self._sweep()
        temporary = os.path.join(self._temporary, uuid.uuid4().hex)
        for _ in range(_FOLDER_TRIES):
            # Somebody removed the folder again; FileExistsError, if between makedirs' mkdir and its isdir.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                os.makedirs(self._temporary, exist_ok=True)
                return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
        raise FileNotFoundError(errno.ENOENT, "The folder for temporary files cannot be made")

    def _publish(self, temporary: str, path: str) -> None:
        """Give a finished file its name; folders on the way may be removed by others (``delete`` prunes them)."""
        for _ in range(_FOLDER_TRIES):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                return os.rename(temporary, path)
            except FileNotFoundError:
                if not os.path.lexists(temporary):
                    break
            except FileExistsError:  # of makedirs: removed between its mkdir and its isdir, or a file is in the way
                if os.path.lexists(os.path.dirname(path)):
                    raise
        raise TransientStoreError(f"Cannot write {path}: others remove its folder or its temporary file", where=path)

    def _sweep(self) -> None:
        """Remove what killed processes left; whatever cannot be removed is left to the next one."""
        oldest = time.time() - _TEMPORARY_LIFE_S
        with contextlib.suppress(OSError), os.scandir(self._temporary) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)

    def _walk(self, path: str) -> Iterator[Entry]:
        def failed(error: OSError) -> None:
            if error.errno not in _MISSING:
                raise error

        for folder, _, names in os.walk(path, onerror=failed):
            for name in names:
                full = os.path.join(folder, name)
                try:
                    size = os.stat(full).st_size
                except FileNotFoundError:
                    continue  # removed since it was listed
                yield Entry(os.path.relpath(full, self.root), size)


@contextlib.contextmanager
def _mapped(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"Cannot {verb} {path}: {os_reason(error)}"
        if verb == "read" and error.errno in _MISSING:
            raise NotFound(f"There is no object {path}", where=path) from error
        kind = TransientStoreError if error.errno in _TRANSIENT else StoreError
        raise kind(what, where=path, hint=os_hint(error)) from error


def _discard(fd: int, temporary: str) -> None:
    """Close and remove a temporary file; it is gone already where it was published."""
    os.close(fd)
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def _write_chunk(source: Source, fd: int, offset: int) -> int:
    crc, end = 0, min(offset + CHUNK_BYTES, source.size)
    while offset < end:
        data = source.pread(min(_PIECE, end - offset), offset)
        pwrite_all(fd, data, offset)
        crc = zlib.crc32(data, crc)
        offset += len(data)
    return crc


def _clone(source_fd: int, target_fd: int, size: int) -> bool:
    return size > 0 and clone(source_fd, target_fd)


def _open_object(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "It is not a file")
    return fd


def _open_captured(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise IntegrityError(f"The captured file cannot be read: {os_reason(error)}", where=path) from error


def _names(path: str, fd: int) -> bool:
    """Whether ``path`` is (still) the file that ``fd`` reads."""
    try:
        named, opened = os.stat(path), os.fstat(fd)
    except OSError as error:
        raise IntegrityError(f"The captured file cannot be read: {os_reason(error)}", where=path) from error
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

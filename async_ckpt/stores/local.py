"""A directory as a store; usually the root of Metaflow's local datastore, which reads the same files.

Objects are written under a temporary name in ``<root>/.async-ckpt-tmp`` (out of the way of everybody who lists the
datastore) and renamed. What a killed process left there is removed a day later.

An object is on the disk when its ``put`` or ``copy`` returns, before the snapshot it came from is given up: its bytes
are synced before the rename, its folder after it. Else a machine that loses power would be left with empty files
under final names. That lasts as long as the disk takes to write them: on an ext4 of 0.8 GB/s, 1 GiB 1.4 s instead of
0.5, 100 files of 1 MiB 0.14 s instead of 0.03. One syncfs(2) before a commit would last as long, wait for everybody
else's bytes as well, and not say which object is safe. ``Config.local_fsync`` turns it off.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from anyio import from_thread, to_thread

from ..config import CHUNK_BYTES, FOLDER_LOCK_S, KNOWN_AGAIN_BYTES, TEMPORARY_FILE_LIFE_S, Config
from ..errors import IntegrityError, NotFound, StoreError, TransientStoreError, UsageError, os_hint, os_reason
from ..system.digests import ChunkDigests, Digester
from ..system.files import NO_LINK, clone, copy_range, folders_below, pwrite_all, try_lock, unlock, wait_for
from ._local_copy import copied_chunks, sync_file, sync_folder
from .base import (
    MAX_BYTES,
    Capabilities,
    Content,
    Earlier,
    ListedObject,
    PartsLog,
    Progress,
    Store,
    Stored,
    StoreSpec,
    TooLong,
    check_key,
    check_size,
    no_progress,
    too_long,
)
from .retry import Counted, RetryStore
from .same_content import SameContent
from .throttle import Throttle

T = TypeVar("T")
Chunks = list[ChunkDigests]  # Inside the class, ``list`` is its method.

_TEMPORARY = ".async-ckpt-tmp"
#: Content that is in no file is read in pieces of this size, in bytes.
_PIECE = 1 << 20
#: A listing is made, and small objects are read, in pages of this many.
_PAGE = 1000
#: Others may remove a folder while it is empty: it is made again, up to this many times. Each takes microseconds.
_FOLDER_TRIES = 500
#: Errors of flock(2) on file systems that have no locks on folders. Two writers may then write at the same time.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

#: There is no such object: the path, or a folder on the way to it, is missing, or is something else than a file.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
#: Errors that may pass: a network file system has lost a handle or its server, a mount is busy, a table is full.
_TRANSIENT = (
    errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENFILE, errno.EHOSTDOWN,
    errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ENETDOWN, errno.EPIPE, errno.ESHUTDOWN, errno.EREMOTEIO,
)  # fmt: skip
#: EIO is what soft mounts of NFS, and FUSE, say when their server is gone. A write is tried again then. A read is not:
#: the file may be damaged, and another checkpoint is loaded instead.
_TRANSIENT_WRITE = (*_TRANSIENT, errno.EIO)


def open_store(spec: StoreSpec, config: Config) -> Store:
    """The store in the directory that ``spec`` names, with retries."""
    return RetryStore(LocalStore(spec.root, config), config)


class LocalStore(Store):
    """Objects are files below ``root``.

    Parameters
    ----------
    root : str
        Absolute directory; made when the first object is written.
    config : Config
        ``local_fsync``: whether a ``put`` waits for the disk.
    """

    capabilities = Capabilities(copy=True, conditional_put=True, create_only=True, get_each=True)

    def __init__(self, root: str, config: Config = Config()) -> None:  # noqa: B008 - immutable
        self.root = os.path.abspath(root)
        self._temporary = os.path.join(self.root, _TEMPORARY)
        self._durable, self._knows_again = config.local_fsync, config.content_digests
        self._same = SameContent()
        self._swept = False
        self._throttle = Throttle()

    def pace(self, bytes_per_s: float) -> bool:
        self._throttle.pace(bytes_per_s)
        return True

    async def put_content(
        self, key: str, content: Content, progress: Progress = no_progress, log: PartsLog | None = None,
        earlier: Earlier | None = None,
    ) -> Stored:  # fmt: skip
        path = self._path(key)

        with _mapped("write", path):
            if earlier is not None and self._knows_again and content.size >= KNOWN_AGAIN_BYTES:
                known = await self._job(lambda tell: self._link_same(path, content, earlier, tell), content.size)
                if known is not None:
                    earlier.copied(content.size)
                    return known
            if content.size <= CHUNK_BYTES:
                await self._throttle.wait(content.size)
            return await self._job(
                lambda tell: self._write(path, content, tell), content.size, progress, self._throttle
            )

    async def copy(self, source_key: str, key: str, size: int, etag: str = "") -> str:
        source, path = self._path(source_key), self._path(key)
        with _mapped("write", path):
            return await to_thread.run_sync(self._copy_object, source_key, source, path, size, etag)

    async def put_bytes(self, key: str, data: bytes) -> None:
        path = self._path(key)

        def write() -> None:
            with self._new_file() as (fd, temporary):
                pwrite_all(fd, data, 0)
                self._publish(temporary, path, fd)

        with _mapped("write", path):
            await _abandonable(write)

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        path = self._path(key)
        with _mapped("read", path):
            return await _abandonable(lambda: _read_small(path))

    async def get_each(self, keys: Sequence[str], in_flight: int) -> dict[str, bytes]:
        paths = {key: self._path(key) for key in keys}

        def read(some: Iterable[str]) -> dict[str, bytes]:
            found = {}
            for key in some:
                with contextlib.suppress(NotFound, IntegrityError), _mapped("read", paths[key]):
                    found[key] = _read_small(paths[key])[0]
            return found

        # Some in one thread: to begin one for each takes longer than to read it.
        pieces = [keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE)]
        found: dict[str, bytes] = {}
        for piece in pieces:
            found |= await _abandonable(functools.partial(read, piece))
        return found

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        path = self._path(key)
        folder = os.path.dirname(path)

        def write() -> bool:
            with self._new_file() as (fd, temporary):
                pwrite_all(fd, data, 0)
                if tag is None and (created := self._create(temporary, path, fd)) is not None:
                    return created
                with _alone_in(folder):
                    if _tag_of(path) != tag:
                        return False
                    self._publish(temporary, path, fd)
                    return True

        with _mapped("write", path):
            return await _abandonable(write)

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
            source_fd = await to_thread.run_sync(_open_object, path)
        try:
            found = os.fstat(source_fd).st_size
            check_size(key, path, found, size, crc32)
            with _mapped("write", destination):
                await self._job(
                    lambda tell: _read(key, path, source_fd, destination, found, crc32, tell), found, progress
                )
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
            return await to_thread.run_sync(measure)

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        path = self._path(prefix)
        entries = self._walk(path)
        if beginning:
            entries = (entry for entry in entries if entry.key.startswith(f"{prefix}/{beginning}"))
        with _mapped("list", path):
            while page := await to_thread.run_sync(lambda: list(itertools.islice(entries, _PAGE))):
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
            await to_thread.run_sync(remove)

    async def aclose(self) -> None:
        """Nothing is held between calls."""

    def _path(self, key: str) -> str:
        if check_key(key).split("/", 1)[0] == _TEMPORARY:
            raise UsageError(f"The key {key!r} lies in the store's own folder for temporary files")
        return os.path.join(self.root, key)

    @staticmethod
    async def _job(
        function: Callable[[Progress], T], size: int, progress: Progress = no_progress, throttle: Throttle | None = None
    ) -> T:
        """Call ``function(tell)`` in a thread; ``tell(count)`` is ``progress``, waits for the throttle, and ends the
        job if the caller was cancelled. One thread for a whole object: each change of threads takes as long as copying
        64 KiB.
        """

        def tell(count: int) -> None:
            from_thread.run_sync(progress, count)
            if throttle is not None and throttle.rate and count > 0:
                from_thread.run(throttle.wait, count)
            from_thread.check_cancelled()

        if size > CHUNK_BYTES:
            return await to_thread.run_sync(function, tell)
        result = await to_thread.run_sync(function, no_progress)
        progress(size)
        return result

    def _write(self, path: str, content: Content, tell: Progress) -> Stored:
        with self._new_file() as (fd, temporary):
            counted = Counted(tell)
            known_again = self._knows_again and content.size >= KNOWN_AGAIN_BYTES
            chunks = content.from_file(
                lambda source_fd: self._copy_file(source_fd, content.size, fd, counted, known_again)
            )
            if chunks is None:
                offsets = range(0, content.size, CHUNK_BYTES)
                chunks = [_write_chunk(content, fd, offset, tell, known_again) for offset in offsets]
            self._publish(temporary, path, fd)
            digests = tuple(chunk.digest for chunk in chunks if chunk.digest)
            return Stored([chunk.crc32 for chunk in chunks], digests, _etag(fd))

    def _link_same(self, path: str, content: Content, earlier: Earlier, tell: Progress) -> Stored | None:
        """Make an earlier object of the same content this one as well, without writing it anew; None: there is none."""
        if (same := self._same.find(content, earlier, lambda: tell(0))) is None:
            return None
        key = same.place.key
        try:
            etag = self._copy_object(key, self._path(key), path, content.size, same.place.etag)
        except StoreError:  # It was removed or replaced meanwhile.
            earlier.forget(key)
            return None
        return same.stored._replace(etag=etag)

    def _copy_file(self, source_fd: int, size: int, fd: int, counted: Counted, known_again: bool) -> Chunks | None:
        """Digests of the chunks, read back from the copy; None if the source has not ``size`` bytes."""
        counted.take_back()  # What an earlier copy of a file that was replaced meanwhile has told.
        os.ftruncate(fd, 0)
        if os.fstat(source_fd).st_size != size:
            return None
        found, total = [], 0
        copying = copied_chunks(source_fd, fd, size, known_again=known_again, durable=self._durable)
        with contextlib.closing(copying) as chunks:
            for _, count, digests in chunks:
                found.append(digests)
                total += count
                counted(count)
        return found if total == size == os.fstat(fd).st_size else None

    def _copy_object(self, source_key: str, source: str, path: str, size: int, etag: str) -> str:
        """See ``copy``."""
        with _mapped("read", source):
            source_fd = _open_object(source)
        try:
            check_size(source_key, source, os.fstat(source_fd).st_size, size, None)
            if etag and _etag(source_fd) != etag:
                raise IntegrityError(f"{source_key} was replaced since it was stored", where=source)
            if source == path:
                return etag
            with self._new_file() as (fd, temporary):
                if size and not clone(source_fd, fd, size):
                    if self._link_object(source, path, source_fd):
                        return _etag(source_fd)
                    if copy_range(source_fd, fd, size) != size:
                        raise IntegrityError(f"{source_key} became shorter while it was read", where=source)
                self._publish(temporary, path, fd)
                return _etag(fd)
        finally:
            os.close(source_fd)

    def _link_object(self, source: str, path: str, source_fd: int) -> bool:
        """Give an object a second name; False where it cannot have one. Objects are replaced, never written to, so
        two may share an inode.
        """
        temporary = self._temporary_path()
        try:
            os.link(os.path.realpath(source), temporary)
        except OSError as error:
            if error.errno in NO_LINK or error.errno == errno.ENOENT:  # Removed in this moment.
                return False
            raise
        try:
            if not os.path.samestat(os.stat(temporary), os.fstat(source_fd)):
                return False  # It was replaced since it was opened.
            self._publish(temporary, path, source_fd)
            return True
        finally:
            # It is still there where both were one file before: rename(2) does nothing then.
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple[int, str]]:
        """A new temporary file: its descriptor and path. What has that name at the end of the block is removed."""
        if not self._swept:
            self._swept = True
            self._sweep()
        temporary = self._temporary_path()
        fd = _in_folder(self._temporary, lambda: os.open(temporary, _NEW, 0o666))
        try:
            yield fd, temporary
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _temporary_path(self) -> str:
        return os.path.join(self._temporary, secrets.token_hex(16))

    def _publish(self, temporary: str, path: str, fd: int, *, new: bool = False) -> None:
        """Give a finished file its name. ``fd``: where its bytes are; ``new``: ``FileExistsError`` if it is taken."""
        if self._durable:
            sync_file(fd)
        from_thread.check_cancelled()  # Nobody waits for it any more: what was written since is newer.
        folder = os.path.dirname(path)
        try:
            _in_folder(folder, lambda: (os.link if new else os.rename)(temporary, path))
        except FileNotFoundError as error:
            what = f"Cannot write {path}: others remove its folder or its temporary file"
            raise TransientStoreError(what, where=path) from error
        if self._durable:
            sync_folder(folder)

    def _create(self, temporary: str, path: str, fd: int) -> bool | None:
        """As ``_publish``, if nothing has the name: by link(2), since some network file systems have no locks.

        Returns
        -------
        bool or None
            False: something has the name. None: the file system has no links.
        """
        try:
            self._publish(temporary, path, fd, new=True)
            return True
        except FileExistsError:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            return False
        except OSError as error:
            if error.errno in NO_LINK:
                return None
            raise

    def _sweep(self) -> None:
        """Remove what killed processes left; whatever cannot be removed is left to the next one."""
        oldest = time.time() - TEMPORARY_FILE_LIFE_S
        with contextlib.suppress(OSError), os.scandir(self._temporary) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)

    def _walk(self, path: str) -> Iterator[ListedObject]:
        def failed(error: OSError) -> None:
            if error.errno not in _MISSING:
                raise error

        for folder, _, names in folders_below(path, failed):
            for name in names:
                full = os.path.join(folder, name)
                try:
                    status = os.stat(full)
                except FileNotFoundError:
                    continue  # removed since it was listed
                if not stat.S_ISDIR(status.st_mode):  # A link to a folder is neither an object nor looked into.
                    yield ListedObject(os.path.relpath(full, self.root), status.st_size, status.st_mtime)


async def _abandonable(function: Callable[[], T]) -> T:
    """Call a function in a thread. A caller that is cancelled leaves the thread behind: a network disk may never
    answer, and a commit that waits for it would hold up all others. The function must not use its caller's descriptors.
    """
    return await to_thread.run_sync(function, abandon_on_cancel=True)


@contextlib.contextmanager
def _mapped(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"Cannot {verb} {path}: {os_reason(error)}"
        if verb == "read" and error.errno in _MISSING:
            raise NotFound(f"There is no object {path}", where=path) from error
        passing = _TRANSIENT_WRITE if verb == "write" else _TRANSIENT
        kind = TransientStoreError if error.errno in passing else StoreError
        raise kind(what, where=path, hint=os_hint(error)) from error


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Hold the lock of a folder. It is the folder that is locked, since a file in it would be taken for an object."""
    fd = _in_folder(folder, lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        try:
            wait_for(lambda: try_lock(fd), FOLDER_LOCK_S, folder)
        except TimeoutError as error:
            raise TransientStoreError(f"The folder stays locked: {error}", where=folder) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        unlock(fd)
        os.close(fd)


def _read_small(path: str) -> tuple[bytes, str]:
    """Content and tag of a small object.

    Raises
    ------
    TooLong
        It is none.
    """
    fd = _open_object(path)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_size > MAX_BYTES:
            raise too_long(path, str(status.st_size), _etag(fd))
        data = file.read(MAX_BYTES)
        return data, hashlib.sha256(data).hexdigest()


def _tag_of(path: str) -> str | None:
    try:
        return _read_small(path)[1]
    except FileNotFoundError:
        return None
    except TooLong as error:
        return error.tag


def _in_folder(folder: str, function: Callable[[], T]) -> T:
    """Call what makes a name in a folder, and make the folder where it is missing: others remove it when it is empty.

    Raises
    ------
    FileNotFoundError
        It is removed again and again, or something else is missing.
    """
    for _ in range(_FOLDER_TRIES):
        try:
            return function()
        except FileNotFoundError:
            try:
                os.makedirs(folder, exist_ok=True)
            except FileNotFoundError:
                pass
            except FileExistsError:  # Removed between makedirs' mkdir and its isdir; or a file is in the way.
                if os.path.lexists(folder) and not os.path.isdir(folder):
                    raise
    return function()


def _etag(fd: int) -> str:
    """Tells an object from another one that takes its name, and from itself after a write."""
    status = os.fstat(fd)
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _write_chunk(content: Content, fd: int, offset: int, tell: Progress, known_again: bool) -> ChunkDigests:
    digester, start, end = Digester(known_again=known_again), offset, min(offset + CHUNK_BYTES, content.size)
    while offset < end:
        data = content.pread(min(_PIECE, end - offset), offset)
        pwrite_all(fd, data, offset)
        digester.update(data)
        offset += len(data)
    tell(end - start)
    return digester.result()


def _read(
    key: str,
    path: str,
    source_fd: int,
    destination: str,
    size: int,
    crc32: Sequence[int] | None,
    tell: Progress,
) -> None:
    """Copy an object's ``size`` bytes out of the store, and check them."""
    target_fd = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.closing(copied_chunks(source_fd, target_fd, size, digest=crc32 is not None)) as chunks:
            for index, (offset, count, digests) in enumerate(chunks):
                if count != min(CHUNK_BYTES, size - offset):
                    raise IntegrityError(f"{key} became shorter while it was read", where=path)
                if crc32 is not None and digests.crc32 != crc32[index]:
                    raise IntegrityError(f"{key} is damaged at byte {offset}", where=path)
                tell(count)
    finally:
        os.close(target_fd)


def _open_object(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "It is not a file")
    return fd

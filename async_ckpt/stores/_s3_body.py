"""The ends of a transfer on this side: a source's range, its digests, and the file that answers fill."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import anyio

from ..config import CHUNK_BYTES
from ..errors import StoreError, os_hint, os_reason
from ..files import crc32, preallocate, pwrite_all
from ._s3_pace import Throttle
from .base import Source

#: Bytes read at a time: few enough system calls, and little memory with many threads. Chunks are a multiple of it.
PIECE_BYTES = 1 << 20

#: How much is sent through a client before it is reported.
_TOLD_BYTES = PIECE_BYTES // 4


class Digest(NamedTuple):
    """Of a range: its length in bytes, the CRC-32 of every chunk in it and of the whole, SHA-256 in hex digits (None:
    not asked for), and the content itself where it is no longer than a piece.
    """

    length: int
    crcs: list[int]
    crc: int
    sha256: str | None
    data: bytes | None


def digest(
    source: Source, offset: int, length: int, *, sha256: bool = False, check: Callable[[], None] = lambda: None
) -> Digest:
    """Read a range that begins at a chunk; ``check`` is called now and then, and may raise."""
    sha = hashlib.sha256() if sha256 else None
    crcs: list[int] = []
    whole = chunk = done = 0
    data = b""
    while done < length:
        check()
        data = source.pread(min(PIECE_BYTES, length - done), offset + done)
        done += len(data)
        chunk = crc32(data, chunk)
        if length > CHUNK_BYTES:
            whole = crc32(data, whole)
        if sha is not None:
            sha.update(data)
        if done == length or done % CHUNK_BYTES == 0:
            crcs.append(chunk)
            chunk = 0
    if length <= CHUNK_BYTES:
        whole = crcs[0] if crcs else 0
    return Digest(length, crcs, whole, sha.hexdigest() if sha else None, data if length <= PIECE_BYTES else None)


class Bytes:
    """A ``Source`` in memory."""

    path = None

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def pread(self, count: int, offset: int) -> bytes:
        return self._data[offset : offset + count]


class Body:
    """A request body for botocore that never exists as one ``bytes``.

    aiohttp sends it as an asynchronous iterable; botocore reads it as a file first where it signs payloads. Either
    begins a new pass at the first byte, so a request that is repeated inside botocore (a redirect to the bucket's
    region) or inside aiohttp sends the whole range again.

    Parameters
    ----------
    source : Source
        What to send.
    offset, length : int
        The range in bytes.
    throttle : Throttle
        What sending is slowed down by.
    sending : callable
        Called with the number of bytes that are about to be sent; negative when a pass starts over.
    """

    def __init__(
        self, source: Source, offset: int, length: int, throttle: Throttle, sending: Callable[[int], None]
    ) -> None:
        self._source, self._offset, self._length = source, offset, length
        self.throttle, self._sending = throttle, sending
        self._sent = 0
        self._pass = _Pass(self)
        #: What the source raised, if it did: the HTTP client reports that as a broken connection.
        self.error: Exception | None = None

    def settle(self) -> None:
        """Report what was sent but not seen as pieces: a wrapper around this body reads it as a file."""
        self.report(self._length - self._sent)

    def __len__(self) -> int:
        return self._length

    def read(self, size: int | None = None) -> bytes:
        return self._pass.read(size if size is not None and size >= 0 else self._length)

    def tell(self) -> int:
        return self._pass.position

    def seek(self, position: int) -> None:
        """Begin a new pass; raises as ``rewind``."""
        self.rewind(position)
        self.take_back()

    def rewind(self, position: int) -> None:
        """Begin a new pass without a word on the last one.

        Raises
        ------
        ValueError
            Any position but the start.
        """
        if position != 0:
            raise ValueError(f"cannot seek to {position}: a body can only be read again from its start")
        self._pass = _Pass(self)

    def take_back(self) -> None:
        """Report what an earlier pass sent as a negative count."""
        self.report(-self._sent)

    def __aiter__(self) -> _Pass:
        self.seek(0)
        return self._pass

    def report(self, count: int) -> None:
        """So many bytes more were sent."""
        if count:
            self._sent += count
            self._sending(count)


class _Pass:
    """One reading of the body from its start; what an abandoned one still reads does not count."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.position = 0

    def read(self, count: int) -> bytes:
        body = self._body
        count = min(count, body._length - self.position)
        if count <= 0:
            return b""
        try:
            data = body._source.pread(count, body._offset + self.position)
        except Exception as error:
            body.error = error
            raise
        self.position += len(data)
        return data

    def __aiter__(self) -> _Pass:
        return self

    async def __anext__(self) -> bytes:
        data = self.read(_TOLD_BYTES)
        if not data:
            raise StopAsyncIteration
        await anyio.sleep(self._body.throttle.reserve(len(data)))
        if self._body._pass is self:
            self._body.report(len(data))
        return data


class BlockingBody:
    """A ``Body`` that a thread reads, as a file; what moves is reported in the loop.

    Parameters
    ----------
    body : Body
        The content.
    loop : asyncio.AbstractEventLoop
        The loop of whoever waits for the request.
    """

    def __init__(self, body: Body, loop: asyncio.AbstractEventLoop) -> None:
        self._body, self._loop = body, loop
        self._stopped = False
        self._untold = 0

    def stop(self) -> None:
        """Nobody waits any more: the next reading fails, and with it the request."""
        self._stopped = True

    def __len__(self) -> int:
        return len(self._body)

    def tell(self) -> int:
        return self._body.tell()

    def seek(self, position: int) -> None:
        """Begin a new pass; raises as ``Body.seek``."""
        self._body.rewind(position)
        self._untold = 0
        self._tell(self._body.take_back)

    def read(self, size: int | None = None) -> bytes:
        self._check()
        data = self._body.read(size)
        self._body.throttle.take(len(data), self._check)
        self._untold += len(data)
        if self._untold >= _TOLD_BYTES:  # urllib3 reads 16 KiB at a time; what is left is told by ``settle``.
            self._tell(self._body.report, self._untold)
            self._untold = 0
        return data

    def _check(self) -> None:
        if self._stopped:
            raise ConnectionAbortedError("nobody waits for this request any more")

    def _tell(self, function: Callable[..., None], *arguments: int) -> None:
        with contextlib.suppress(RuntimeError):  # A loop that has ended counts nothing.
            self._loop.call_soon_threadsafe(function, *arguments)


class LocalFile:
    """The file that ranges of ``size`` bytes in all are written to, and whose errors are not the network's.

    It is made when the first of them arrives, in the thread that writes it: with thousands of small files, making them
    takes as long as filling them. A file of several ranges gets its blocks at once, so that a full disk is known before
    hours of transfer.

    Raises
    ------
    StoreError
        The file cannot be made or written.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        self._fd: int | None = None
        self._lock = threading.Lock()
        self._made = False

    def write(self, data: bytes | memoryview, offset: int) -> None:
        with self._mapped():
            if len(data) == self.size:  # Closing takes time as well: not the loop's.
                fd = self._make()
                try:
                    pwrite_all(fd, data, offset)
                finally:
                    os.close(fd)
                return
            with self._lock:
                if self._fd is None:
                    self._fd = self._make()
            pwrite_all(self._fd, data, offset)

    def close(self, *, whole: bool) -> None:
        """Close it; ``whole``: all was written, so the file has to be there, if only an empty one."""
        with self._mapped():
            if whole and not self._made:
                self._fd = self._make()
            if self._fd is not None:
                os.close(self._fd)

    def _make(self) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            if self.size > CHUNK_BYTES:
                preallocate(fd, self.size)
        except BaseException:
            os.close(fd)
            raise
        self._made = True
        return fd

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"Cannot write {self.path}: {os_reason(error)}", where=self.path, hint=os_hint(error)
            ) from error

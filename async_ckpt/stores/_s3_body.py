"""The two ends of a transfer on this side: a source's range as a request's body, and the file that answers fill."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator

from ..config import CHUNK_BYTES
from ..errors import StoreError, os_hint, os_reason
from ..files import pwrite_all
from .base import Source

#: Bytes read and handed to the socket at a time.
PIECE_BYTES = 256 << 10


class Body:
    """A request body that never exists as one ``bytes``.

    aiohttp sends it as an asynchronous iterable; botocore reads it as a file first where it signs or digests payloads.
    Either begins a new pass at the first byte, so a request that is repeated inside botocore (a redirect to the
    bucket's region) or inside aiohttp sends the whole range again, with digests that start anew.

    Parameters
    ----------
    source : Source
        What to send.
    offset, length : int
        The range in bytes; the offset is a multiple of ``CHUNK_BYTES``.
    sending : callable
        Called with the number of bytes that are about to be sent; negative when a pass starts over.
    """

    def __init__(self, source: Source, offset: int, length: int, sending: Callable[[int], None]) -> None:
        self._source, self._offset, self._length = source, offset, length
        self._sending = sending
        self._sent = 0
        self._pass = _Pass(self)
        #: What the source raised, if it did: the HTTP client reports that as a broken connection.
        self.error: Exception | None = None

    @property
    def crcs(self) -> list[int]:
        """CRC-32 of every chunk that the last pass read."""
        return self._pass.crcs

    def settle(self) -> None:
        """Report what was sent but not seen as pieces: a wrapper around this body reads it as a file."""
        self._report(self._length - self._sent)

    def __len__(self) -> int:
        return self._length

    def read(self, size: int | None = None) -> bytes:
        return self._pass.read(size if size is not None and size >= 0 else self._length)

    def tell(self) -> int:
        return self._pass.position

    def seek(self, position: int) -> None:
        """Begin a new pass.

        Raises
        ------
        ValueError
            Any position but the start.
        """
        if position != 0:
            raise ValueError(f"cannot seek to {position}: a body can only be read again from its start")
        self._report(-self._sent)
        self._pass = _Pass(self)

    def __aiter__(self) -> _Pass:
        self.seek(0)
        return self._pass

    def _report(self, count: int) -> None:
        if count:
            self._sent += count
            self._sending(count)


class _Pass:
    """One reading of the body from its start; what an abandoned one still reads does not count."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._crc = 0
        self.position = 0
        self.crcs: list[int] = []

    def read(self, count: int) -> bytes:
        body = self._body
        start = body._offset + self.position
        # Never across the end of a chunk, where a digest ends too.
        count = min(count, body._length - self.position, CHUNK_BYTES - start % CHUNK_BYTES)
        if count <= 0:
            return b""
        try:
            data = body._source.pread(count, start)
        except Exception as error:
            body.error = error
            raise
        self._crc = zlib.crc32(data, self._crc)
        self.position += len(data)
        if self.position == body._length or (body._offset + self.position) % CHUNK_BYTES == 0:
            self.crcs.append(self._crc)
            self._crc = 0
        return data

    def __aiter__(self) -> _Pass:
        return self

    async def __anext__(self) -> bytes:
        data = self.read(PIECE_BYTES)
        if not data:
            raise StopAsyncIteration
        if self._body._pass is self:
            self._body._report(len(data))
        return data


class LocalFile:
    """The file that ranges of ``size`` bytes in all are written to, and whose errors are not the network's.

    Raises
    ------
    StoreError
        The file cannot be made or written.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        with self._mapped():
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._fd, size)

    def write(self, data: bytes, offset: int) -> None:
        with self._mapped():
            pwrite_all(self._fd, data, offset)

    def close(self) -> None:
        os.close(self._fd)

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"Cannot write {self.path}: {os_reason(error)}", where=self.path, hint=os_hint(error)
            ) from error

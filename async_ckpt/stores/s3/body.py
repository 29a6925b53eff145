"""The ends of a transfer on this side: a range of content, its digests, and the file that answers fill."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import anyio

from ...config import CHUNK_BYTES, LISTEN_S, PIECE_BYTES
from ...errors import StoreError, os_hint, os_reason
from ...system.digests import ChunkDigests, Digester, crc32
from ...system.files import preallocate, write_sparsely
from ..base import Content
from ..throttle import Throttle
from .phases import PhaseTimer

#: Bytes that are digested at a time. Chunks are a multiple of it.
_DIGEST_BYTES = 1 << 20


#: A cautious pass sends so much, and then listens.
_FIRST_BYTES = 1 << 10


class Digest(NamedTuple):
    """Of a range: the CRC-32 of every chunk in it and of the whole, the digests by which the chunks are known again
    (empty: none), SHA-256 in hex digits (None: not asked for), and the content itself where it is no longer than a
    piece.
    """

    crcs: list[int]
    crc: int
    digests: tuple[str, ...]
    sha256: str | None
    data: bytes | None


def digest(
    content: Content, offset: int, length: int, *, sha256: bool = False, known_again: bool = False
) -> Digest:  # fmt: skip
    """Read a range that begins at a chunk."""
    sha = hashlib.sha256() if sha256 else None
    chunks: list[ChunkDigests] = []
    whole = done = 0
    data = b""
    digester = Digester(known_again=known_again)
    while done < length:
        data = content.pread(min(_DIGEST_BYTES, length - done), offset + done)
        done += len(data)
        digester.update(data)
        if length > CHUNK_BYTES:
            whole = crc32(data, whole)
        if sha is not None:
            sha.update(data)
        if done == length or done % CHUNK_BYTES == 0:
            chunks.append(digester.result())
            digester = Digester(known_again=known_again)
    crcs = [chunk.crc32 for chunk in chunks]
    if length <= CHUNK_BYTES:
        whole = crcs[0] if crcs else 0
    digests = tuple(chunk.digest for chunk in chunks if chunk.digest)
    return Digest(crcs, whole, digests, sha.hexdigest() if sha else None, data if length <= PIECE_BYTES else None)


def base64_crc(crc: int) -> str:
    """A CRC-32 as S3 writes it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


class Bytes:
    """A ``Content`` in memory."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def from_file(self, copy: object) -> None:
        """There is no such file."""

    def pread(self, count: int, offset: int) -> bytes:
        return self._data[offset : offset + count]


class Body:
    """A range of content as the body of a request, sent piece by piece; every pass begins at its first byte.

    Parameters
    ----------
    content : Content
        What to send.
    offset, length : int
        The range in bytes.
    throttle : Throttle
        What sending is slowed down by.
    moved : callable
        Called with the number of bytes that are about to be sent.
    """

    def __init__(
        self, content: Content, offset: int, length: int, throttle: Throttle, moved: Callable[[int], None]
    ) -> None:
        self._content, self._offset, self.length = content, offset, length
        self._throttle, self._moved = throttle, moved
        #: What the content raised, if it did: the HTTP client reports that as a broken connection.
        self.error: Exception | None = None
        #: Whether the next pass listens after its first bytes: the last connection broke under it, perhaps because the
        #: store had refused, and who sends cannot hear.
        self.cautious = False
        #: Whether the last pass came to its end.
        self.passed = False
        self._told = self._pass = 0

    async def pieces(self, timer: PhaseTimer) -> AsyncIterator[bytes]:
        """One pass over it, in which ``timer`` is told what goes out."""
        done, self.passed = 0, False
        self._pass += 1
        this = self._pass
        self._tell(-self._told)
        while done < self.length:
            size = self._throttle.piece_bytes
            # Before the first piece the throttle was asked already: a head is not sent before there is budget.
            if done:
                await self._throttle.wait(min(size, self.length - done), timer.waits)
            timer.sending()
            if self.cautious and done == _FIRST_BYTES:
                timer.waits(LISTEN_S)
                await anyio.sleep(LISTEN_S)
            count = _FIRST_BYTES if self.cautious and not done else size
            try:
                data = self._content.pread(min(count, self.length - done), self._offset + done)
            except Exception as error:
                self.error = error
                raise
            done += len(data)
            if this != self._pass:
                return
            self._tell(len(data))
            yield data
        self.passed = True
        timer.sent()

    def give_up(self) -> None:
        """Nobody sends this pass any more: what is still under way in a thread is not counted."""
        self._pass += 1

    def _tell(self, count: int) -> None:
        if count:
            self._told += count
            self._moved(count)

    async def begin(self) -> None:
        """Wait until the first piece may be sent."""
        await self._throttle.wait(min(self._throttle.piece_bytes, self.length))


class LocalFile:
    """The file that ranges of ``size`` bytes in all are written to, and whose errors are not the network's.

    It is made when the first of them arrives. A file of several ranges gets its blocks at once, so that a full disk is
    known before hours of transfer.

    Raises
    ------
    StoreError
        The file cannot be made or written.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        self._fd: int | None = None
        self._made = False

    def write(self, data: bytes, offset: int) -> None:
        with self._mapped():
            if self._fd is None:
                self._fd = self._make()
            write_sparsely(self._fd, data, offset)

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

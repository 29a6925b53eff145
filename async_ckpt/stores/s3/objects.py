"""Objects, written and read in ranges. These requests carry content, so they are prepared here and not by botocore."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

import anyio

from ...config import KNOWN_AGAIN_BYTES, PIECE_BYTES
from ...errors import IntegrityError, StoreError
from ...system.digests import crc32
from ..base import Content, Place, Progress, Stored, no_progress, too_long
from .answers import Answer, NotS3, Refusal, code_of
from .body import Body, Bytes, Digest, LocalFile, base64_crc, digest
from .engine import Engine, UnsignedRequest, received
from .errors import StartOver
from .limits import Limiter
from .phases import PhaseTimer
from .signing import UNSIGNED_PAYLOAD
from .transport import Incoming


class Sent(NamedTuple):
    """A range that is in the store: what is known of it, and its CRC-32 in base64. ``place``: nothing was sent, since
    the store has it there.
    """

    stored: Stored
    checksum: str
    place: Place | None = None


Find = Callable[[Sequence[str]], Place | None]


class Part(NamedTuple):
    """One part of a multipart upload."""

    upload: str
    number: int

    @property
    def query(self) -> str:
        return urlencode({"partNumber": self.number, "uploadId": self.upload}, quote_via=quote)


class Objects:
    """Reads and writes objects; all errors are to be mapped by whoever calls (``Engine.mapping``).

    Parameters
    ----------
    engine : Engine
        What sends requests.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sharing = Limiter(engine.most)
        self.pace(0)

    def pace(self, bytes_per_s: float) -> None:
        """See ``Store.pace``."""
        throttle = self.engine.throttle
        throttle.pace(bytes_per_s)
        self._sharing.change(throttle.connections or self.engine.most)

    async def put(
        self, key: str, content: Content, offset: int, length: int, moved: Progress, *, part: Part | None = None,
        find: Find | None = None, condition: Mapping[str, str] | None = None, small: bool = False,
    ) -> Sent:  # fmt: skip
        """Send a range of content as an object, or as a part of one.

        Parameters
        ----------
        find : callable
            Says by its digests where the store has it; what it has there is not sent.
        condition : mapping
            Headers that say what has to be there.
        small : bool
            It is metadata.

        Raises
        ------
        Refusal, OSError, or an error of a library underneath
            As all requests here; to be mapped by whoever calls (``mapping``).
        """
        engine, setup = self.engine, await self.engine.setup()
        path = f"{engine.path(key)}?{part.query}" if part else engine.path(key)
        operation = "UploadPart" if part else "PutObject"
        async with self._limiter(length), self._sharing if length > PIECE_BYTES else contextlib.nullcontext():
            known_again = engine.config.content_digests and content.size >= KNOWN_AGAIN_BYTES
            facts = await self._digest(content, offset, length, setup.signs_content, known_again)
            checksum = base64_crc(facts.crc)
            place = find(facts.digests) if find is not None and facts.digests else None
            if place is not None:
                return Sent(Stored(facts.crcs, facts.digests), checksum, place)
            headers = {**setup.user_headers.headers(operation, small=small), **(condition or {})}
            if setup.checksums:
                headers |= {"x-amz-checksum-crc32": checksum, "x-amz-sdk-checksum-algorithm": "CRC32"}
            body: bytes | Body
            if facts.data is not None:
                body = facts.data
                if small:  # A commit does not stand in line behind content: that makes up for it.
                    engine.throttle.reserve(length)
                else:
                    await engine.throttle.wait(length)
            else:
                body = Body(content, offset, length, engine.throttle, self._counting(length, moved))
                await body.begin()
            request = UnsignedRequest(operation, "PUT", path, headers, body, facts.sha256 or UNSIGNED_PAYLOAD)
            answer: Answer = await engine.exchange(request)
        if facts.data is not None:
            moved(length)
        stored = answer.headers.get("x-amz-checksum-crc32")
        if setup.checksums and stored and "-" not in stored and stored != checksum:
            raise ConnectionError(f"the CRC-32 of what was stored is {stored}, and that of what was sent {checksum}")
        return Sent(Stored(facts.crcs, facts.digests, answer.headers["etag"]), checksum)

    async def put_bytes(self, key: str, data: bytes, condition: Mapping[str, str] | None = None) -> None:
        """Write a small object; as ``put``."""
        await self.put(key, Bytes(key, data), 0, len(data), no_progress, condition=condition, small=True)

    async def get(self, key: str, file: LocalFile, offset: int, count: int, moved: Progress, tag: str | None) -> int:
        """Read ``count`` bytes of an object to the same place in a file, and return their CRC-32.

        Parameters
        ----------
        tag : str or None
            The ETag that the object has to have.

        Raises
        ------
        StartOver
            It has another one.
        IntegrityError
            It has another size than the file.
        Refusal, OSError, or an error of a library underneath
            As ``put``.
        """
        setup, where = await self.engine.setup(), f"{self.engine.root}/{key}"
        ranged, last = count < file.size, offset + count - 1
        headers = setup.user_headers.headers("GetObject")
        if ranged:
            headers["range"] = f"bytes={offset}-{last}"
        elif setup.validates:
            headers["x-amz-checksum-mode"] = "ENABLED"
        count_moved = self._counting(count, moved)

        async def reader(incoming: Incoming, timer: PhaseTimer) -> int:
            if tag is not None and incoming.headers.get("etag") != tag:
                raise StartOver(f"{where} was replaced while it was read", where=where)
            announced = incoming.headers.get("content-length")
            if ranged:
                span = incoming.headers.get("content-range", "")
                if not span.startswith(f"bytes {offset}-{last}/"):  # Some say so with 200.
                    got = span or "the whole object"
                    raise StoreError(f"The store answers bytes {offset}-{last} of {where} with {got}", where=where)
            elif announced is not None and announced != str(file.size):
                raise IntegrityError(f"{key} has {announced} bytes instead of {file.size}", where=where)
            crc = done = 0
            async for data in received(incoming, timer):
                if done + len(data) > count:
                    raise ConnectionError(f"{count} bytes were asked for and more came")
                file.write(data, offset + done)
                crc = crc32(data, crc)
                done += len(data)
                count_moved(len(data))
            if done < count:
                raise ConnectionError(f"{count} bytes were asked for and {done} came")
            if not ranged:
                _check_checksum(incoming.headers, crc, key, where)
            return crc

        async with self._limiter(count):
            crc: int = await self.engine.exchange(
                UnsignedRequest("GetObject", "GET", self.engine.path(key), headers), reader
            )
        return crc

    async def get_bytes(self, key: str, limit: int) -> tuple[bytes, str]:
        """A small object, whole, and its ETag; raises as ``get``, also for one of more than ``limit`` bytes."""
        setup, where = await self.engine.setup(), f"{self.engine.root}/{key}"
        headers = setup.user_headers.headers("GetObject")
        if setup.validates:
            headers["x-amz-checksum-mode"] = "ENABLED"

        async def reader(incoming: Incoming, timer: PhaseTimer) -> tuple[bytes, str]:
            announced = incoming.headers.get("content-length")
            pieces: list[bytes] = []
            total = crc = 0
            if announced is not None and announced.isdecimal() and int(announced) > limit:
                raise too_long(where, announced, incoming.headers["etag"])
            async for data in received(incoming, timer):
                pieces.append(data)
                total += len(data)
                crc = crc32(data, crc)
                if total > limit:
                    raise too_long(where, f"more than {limit}", incoming.headers["etag"])
            if announced is not None and announced != str(total):
                raise ConnectionError(f"{announced} bytes were announced and {total} came")
            _check_checksum(incoming.headers, crc, key, where)
            return b"".join(pieces), incoming.headers["etag"]

        async with self.engine.small:
            request = UnsignedRequest("GetObject", "GET", self.engine.path(key), headers)
            found: tuple[bytes, str] = await self.engine.exchange(request, reader)
        return found

    async def head(self, key: str) -> tuple[Answer, int]:
        """An object's headers, and its size in bytes; raises as ``get``."""
        engine, setup = self.engine, await self.engine.setup()
        headers = setup.user_headers.headers("HeadObject")
        if setup.validates:
            headers["x-amz-checksum-mode"] = "ENABLED"
        request = UnsignedRequest("HeadObject", "HEAD", engine.path(key), headers)
        try:
            answer: Answer = await engine.exchange(request)
        except Refusal as error:
            if code_of(error)[1] not in (400, 401, 403):
                raise
            # An answer to HEAD has no words: whoever asks for a byte is told why, or is let in by now.
            first = {**setup.user_headers.headers("GetObject"), "range": "bytes=0-0"}
            try:
                await engine.exchange(UnsignedRequest("GetObject", "GET", engine.path(key), first), _nothing)
            except Refusal as said:
                if code_of(said)[1] != 416:  # An empty object has no first byte.
                    raise
            answer = await engine.exchange(request)
        length = answer.headers.get("content-length", "")
        if not length.isdecimal():
            raise NotS3.made("HeadObject", answer, "it does not say how long the object is")
        return answer, int(length)

    def _limiter(self, length: int) -> Limiter:
        return self.engine.small if length <= PIECE_BYTES else self.engine.large

    def _counting(self, length: int, moved: Progress) -> Progress:
        """A progress that the limit of requests in flight hears of as well."""
        if length <= PIECE_BYTES:
            return moved

        def count(bytes_: int) -> None:
            self.engine.large.moved(bytes_, held_back=self.engine.throttle.rate > 0)
            moved(bytes_)

        return count

    @staticmethod
    async def _digest(content: Content, offset: int, length: int, sha256: bool, known_again: bool) -> Digest:
        def make() -> Digest:
            return digest(content, offset, length, sha256=sha256, known_again=known_again)

        if length <= PIECE_BYTES:
            return make()
        try:
            return await anyio.to_thread.run_sync(make)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"cannot digest it: {error}") from error  # No more threads, for now.


async def _nothing(incoming: Incoming, timer: PhaseTimer) -> None:
    """Read no content."""


def _check_checksum(headers: Mapping[str, str], crc: int, key: str, where: str) -> None:
    """Compare content with the CRC-32 that the store keeps of it, if it says that it is one of the whole."""
    kept = headers.get("x-amz-checksum-crc32")
    if kept and headers.get("x-amz-checksum-type") == "FULL_OBJECT" and kept != base64_crc(crc):
        raise IntegrityError(
            f"{key} is damaged: its CRC-32 is {base64_crc(crc)}, and the store's is {kept}", where=where
        )

"""The requests that carry content, past botocore: signed here, in threads, straight between file and socket.

Each thread digests the range it is going to send, names its CRC-32 to the store, which refuses what arrives otherwise,
and sends it in a second pass, from the page cache. (A checksum behind the content would save that pass, and needs
chunked bodies, which several stores answer with 411.)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from ..files import crc32
from ._s3_body import PIECE_BYTES, LocalFile, digest
from ._s3_endpoint import Endpoint
from ._s3_http import Answer, Closed, Job, Pool, Wire
from ._s3_pace import Throttle
from ._s3_threads import Threads
from .base import Progress, Source, no_progress

T = TypeVar("T")

#: How often a transfer's progress is looked at, in seconds.
_LOOK_S = 0.1

_MAX_ERROR_BYTES = 256 << 10
_REDIRECTS = (301, 302, 307, 308)
#: The bucket is in another region, or the endpoint another one: botocore knows how to follow.
_ELSEWHERE = frozenset({
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect",
})  # fmt: skip

_local = threading.local()


class Elsewhere(Exception):
    """The bucket is not where its requests were sent: no failure, botocore can follow."""


class Sent(NamedTuple):
    """A range that is in the store: its ETag, CRC-32 (base64, as S3 has it), and the CRC-32 of every chunk."""

    etag: str
    checksum: str
    crcs: list[int]


class Bulk:
    """Content to and from one bucket.

    Parameters
    ----------
    endpoint : Endpoint
        How requests look.
    credentials : object or None
        Of aiobotocore, with ``get_frozen_credentials``; None: requests are not signed.
    small, large : Threads
        Where requests run, those of up to ``PIECE_BYTES`` and the others: neither waits for the other kind.
    answered : callable
        Called in a thread with the seconds between a small request and its answer.
    checksums : bool
        Whether the CRC-32 of what is sent goes with it.
    throttle : Throttle
        What uploads are slowed down by.
    connect_s, stall_s : float
        Limits in seconds for connecting and for a connection on which nothing moves.
    """

    def __init__(
        self, endpoint: Endpoint, credentials: Any, *, small: Threads, large: Threads, throttle: Throttle,
        answered: Callable[[float], None], checksums: bool, connect_s: float, stall_s: float,
    ) -> None:  # fmt: skip
        self._endpoint, self._credentials, self._throttle = endpoint, credentials, throttle
        self._small, self._large, self._answered = small, large, answered
        self._checksums = checksums
        self._pool = Pool(endpoint.address, connect_s, stall_s)

    async def put(
        self, name: str, source: Source, offset: int, length: int, moved: Progress, *,
        query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
    ) -> Sent:  # fmt: skip
        """Send a range of a source as an object or as a part.

        Raises
        ------
        ClientError
            The store refuses it.
        Elsewhere
            The bucket is not here.
        OSError
            The connection failed.
        """
        endpoint, keys = self._endpoint, await self._keys()

        def send(job: Job) -> Sent:
            facts = digest(source, offset, length, sha256=not endpoint.unsigned_payload, check=job.check)
            checksum = base64_crc(facts.crc)
            fields = {"content-length": str(length), **(headers or {})}
            if self._checksums:
                fields |= {"x-amz-checksum-crc32": checksum, "x-amz-sdk-checksum-algorithm": "CRC32"}
            head = endpoint.head("PUT", name, keys, query=query, headers=fields, sha256=facts.sha256)

            def ask(wire: Wire) -> None:
                if facts.data is not None:
                    self._throttle.take(length, job.check)
                    wire.send(head + facts.data)
                else:
                    wire.send(head)
                    self._send_range(wire, source, offset, length, job)

            def done(wire: Wire, answer: Answer) -> Sent:
                _check(answer, wire, "PutObject")
                wire.read(_MAX_ERROR_BYTES)
                return Sent(answer.headers.get("etag", ""), checksum, facts.crcs)

            return self._exchange(job, ask, done)

        return await self._run(send, length, moved)

    async def get(
        self, name: str, file: LocalFile, offset: int, count: int, moved: Progress, *, ranged: bool,
        check: Callable[[Mapping[str, str]], None],
    ) -> int:  # fmt: skip
        """Read ``count`` bytes of an object to the same place in a file, and return their CRC-32.

        Parameters
        ----------
        ranged : bool
            Ask for the range, not for the whole object.
        check : callable
            Gets the answer's headers before any of the content is written, and may raise.

        Raises
        ------
        ClientError, Elsewhere, OSError
            As ``put``; also for an answer of more or fewer bytes than ``count``.
        """
        keys = await self._keys()
        headers = {"range": f"bytes={offset}-{offset + count - 1}"} if ranged else {}

        def receive(job: Job) -> int:
            head = self._endpoint.head("GET", name, keys, headers=headers)

            def take(wire: Wire, answer: Answer) -> int:
                _check(answer, wire, "GetObject")
                check(answer.headers)
                buffer, crc, done = _buffer(), 0, 0
                while length := wire.read_into(buffer[: min(PIECE_BYTES, count - done)]):
                    piece = buffer[:length]
                    file.write(piece, offset + done)
                    crc = crc32(piece, crc)
                    done += length
                    job.moved = done
                if done < count or not wire.finished:
                    raise ConnectionError(f"{count} bytes were asked for and {'more' if done == count else done} came")
                return crc

            return self._exchange(job, lambda wire: wire.send(head), take, exact=count > PIECE_BYTES)

        return await self._run(receive, count, moved)

    async def get_bytes(self, name: str, limit: int) -> tuple[bytes, str]:
        """A small object, whole, and its ETag; raises as ``get``, also for one of more than ``limit`` bytes."""
        keys = await self._keys()

        def take(wire: Wire, answer: Answer) -> tuple[bytes, str]:
            _check(answer, wire, "GetObject")
            return wire.read(limit), answer.headers.get("etag", "")

        def receive(job: Job) -> tuple[bytes, str]:
            head = self._endpoint.head("GET", name, keys)
            return self._exchange(job, lambda wire: wire.send(head), take)

        return await self._run(receive, 0, no_progress)

    def close(self) -> None:
        """Close the connections, those in use when their request ends."""
        self._pool.close()

    async def _keys(self) -> Any:
        return None if self._credentials is None else await self._credentials.get_frozen_credentials()

    def _send_range(self, wire: Wire, source: Source, offset: int, length: int, job: Job) -> None:
        done = 0
        while done < length:
            data = source.pread(min(PIECE_BYTES, length - done), offset + done)
            self._throttle.take(len(data), job.check)
            wire.send(data)
            done += len(data)
            job.moved = done

    def _exchange(
        self, job: Job, ask: Callable[[Wire], None], take: Callable[[Wire, Answer], T], *, exact: bool = False
    ) -> T:
        """A request and its answer; once more on a new connection, where a kept one turns out to be closed."""
        while True:
            with self._pool.wire(job) as wire:
                try:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        ask(wire)  # A store that refuses a body may close before it has all of it: its answer counts.
                    asked = time.monotonic()
                    answer = wire.answer(exact=exact)
                    if not exact and not job.moved:
                        self._answered(time.monotonic() - asked)
                except Closed:
                    if not wire.kept:
                        raise
                    wire.reusable = False
                    continue
                except OSError:
                    job.check()  # It was us who ended it.
                    raise
                return take(wire, answer)

    async def _run(self, function: Callable[[Job], T], size: int, moved: Progress) -> T:
        """Run a request in a thread, report what moves, and end it when nobody waits for it any more."""
        job, seen = Job(), 0
        large = size > PIECE_BYTES
        threads = self._large if large else self._small
        future = threads.run(lambda: function(job))
        try:
            if large:  # What is smaller is over before anybody looks.
                while not future.done():
                    await asyncio.wait({future}, timeout=_LOOK_S)
                    now = job.moved
                    if now != seen:
                        moved(now - seen)
                        seen = now
            result = await future
        except asyncio.CancelledError:
            job.abort()
            # What it uses (the source, the file) stays valid until it has ended, which is at once.
            await threads.ended(future)
            if future.done() and not future.cancelled():
                future.exception()  # Nobody wants to know.
            raise
        if seen != size:
            moved(size - seen)  # An answer that was not read piece by piece counts at its end.
        return result


def base64_crc(crc: int) -> str:
    """A CRC-32 as S3 writes it."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _check(answer: Answer, wire: Wire, operation: str) -> None:
    """Raise what an answer says if it is no success."""
    if answer.status < 300:
        return
    body = wire.read(_MAX_ERROR_BYTES)
    facts = {"status_code": answer.status, "headers": answer.headers, "body": body}
    parsed = create_parser("rest-xml").parse(facts, None)
    if answer.status in _REDIRECTS or parsed.get("Error", {}).get("Code") in _ELSEWHERE:
        raise Elsewhere
    raise ClientError(parsed, operation)


def _buffer() -> memoryview:
    """This thread's buffer, whose pages begin where the processor's do: copies are several times faster then."""
    view = getattr(_local, "view", None)
    if view is None:
        view = _local.view = memoryview(mmap.mmap(-1, PIECE_BYTES))
    return view

"""Amazon S3 and what speaks its protocol, over aiobotocore.

Large sources go up as multiparts, large objects come down as ranges, ``parts_in_flight`` of them at a time over all
calls. Content passes through in pieces of ``PIECE_BYTES`` and is digested on the way: memory does not grow with it.

A call on one request does not retry (``RetryStore`` does). The requests of a call that takes many are retried one by
one, since a transfer of thousands of parts would otherwise never get through a store that refuses one in a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import anyio

from ..concurrency import for_each
from ..config import CHUNK_BYTES, Config
from ..errors import IntegrityError, NotFound, StoreError, TransientStoreError, UsageError, os_hint, os_reason
from ..files import pwrite_all
from ._backoff import with_retries
from ._s3_body import Body
from ._s3_client import ThreadCredentials, open_client
from ._s3_errors import StartOver, expired, mapped
from .base import Entry, Progress, S3Settings, Source, Store, check_key, no_progress

T = TypeVar("T")

#: S3's limit of parts in one upload.
MAX_PARTS = 10_000
#: How long a cancelled or failed call may take to tidy up, seconds.
ABORT_S = 10.0
#: A request of which nothing moved for so long after the read time-out is given up; aiohttp has no limit for sending.
STALL_S = 60.0


class S3Store(Store):
    """Objects below ``root`` in a bucket. Make it anywhere; it connects in the loop that first uses it.

    Parameters
    ----------
    root : str
        ``s3://bucket/prefix``.
    settings : S3Settings
        What the client is made with; deep-copied.
    config : Config
        ``part_bytes``, ``parts_in_flight``, ``unsigned_payload``, and the limits of retries.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(self, root: str, settings: S3Settings = S3Settings(), config: Config = Config()) -> None:  # noqa: B008
        bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        if not root.startswith("s3://") or not bucket:
            raise UsageError(
                f"{root!r} is not an S3 address", hint="Set METAFLOW_DATASTORE_SYSROOT_S3 to s3://bucket/prefix"
            )
        self.root = root.rstrip("/")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._settings, self._config = settings, config
        self._encryption = (
            {"ServerSideEncryption": settings.server_side_encryption} if settings.server_side_encryption else {}
        )
        self._in_flight = max(1, config.parts_in_flight)
        self._opening = asyncio.Lock()
        self._stack: AsyncExitStack | None = None
        self._client: Any = None
        self._credentials: ThreadCredentials | None = None
        self._limiter: anyio.CapacityLimiter
        self._stall_s = STALL_S + 60.0

    async def put_source(self, key: str, source: Source, progress: Progress = no_progress) -> list[int]:
        client = await self._connected()
        try:
            if source.size > part_size(source.size, self._config.part_bytes):
                return await self._put_parts(client, key, source, progress)
            if source.size == 0:
                await self.put_bytes(key, b"")
                return []
            _, crcs = await self._send(client.put_object, key, source, 0, source.size, progress, **self._encryption)
            return crcs
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error

    async def put_bytes(self, key: str, data: bytes) -> None:
        client = await self._connected()
        async with self._limiter:
            with self._request("write", key):
                await client.put_object(**self._name(key), Body=data, ContentLength=len(data), **self._encryption)

    async def get_bytes(self, key: str) -> bytes:
        client = await self._connected()
        pieces: list[bytes] = []
        async with self._limiter:
            with self._request("read", key) as alive:
                answer = await client.get_object(**self._name(key))
                async with answer["Body"] as body:
                    while data := await body.raw_stream.content.readany():
                        pieces.append(data)
                        alive()
        content = b"".join(pieces)
        _check_length(answer, len(content), self.url(key))
        return content

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        client = await self._connected()
        total, tag = size, None
        if total is None or not 0 < total <= CHUNK_BYTES:
            # One request more, before all others can start side by side and be told apart from those of a successor.
            with self._request("read", key):
                answer = await client.head_object(**self._name(key))
            total, tag = int(answer["ContentLength"]), answer.get("ETag")
        self._check_size(key, total, size, crc32)
        file = _File(destination, total)
        try:
            await for_each(
                range(0, total, CHUNK_BYTES),
                self._in_flight,
                lambda offset: self._retried(
                    lambda counted: self._fetch(client, key, file, offset, tag, crc32, counted), progress
                ),
            )
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error
        finally:
            file.close()
        return total

    async def size(self, key: str) -> int:
        client = await self._connected()
        with self._request("read", key):
            answer = await client.head_object(**self._name(key))
        return int(answer["ContentLength"])

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        client = await self._connected()
        params = {"Bucket": self._bucket, "Prefix": self._name(prefix)["Key"] + "/"}

        async def page(_: Progress) -> Any:
            with self._request("list", prefix):
                return await client.list_objects_v2(**params)

        while True:
            answer = await self._retried(page)
            for item in answer.get("Contents", ()):
                # A key that ends in a slash is a console's folder marker, not an object anybody can name.
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"].removeprefix(self._prefix), int(item["Size"]))
            if not answer.get("IsTruncated") or not answer.get("NextContinuationToken"):
                return
            params["ContinuationToken"] = answer["NextContinuationToken"]

    async def delete(self, key: str) -> None:
        client = await self._connected()
        with contextlib.suppress(NotFound), self._request("remove", key):
            await client.delete_object(**self._name(key))

    async def aclose(self) -> None:
        stack, self._stack, self._client = self._stack, None, None
        if stack is not None:
            await stack.aclose()

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                async with AsyncExitStack() as stack:
                    with mapped(f"Cannot make a client for {self.root}", self.root):
                        client, self._credentials = await open_client(stack, self._settings, self._config)
                    self._limiter = anyio.CapacityLimiter(self._in_flight)
                    self._stall_s = STALL_S + float(client.meta.config.read_timeout or 0)
                    self._stack, self._client = stack.pop_all(), client
            return self._client

    @contextlib.contextmanager
    def _request(self, verb: str, key: str) -> Iterator[Callable[[], None]]:
        """Around one request: maps its errors and ends it when nothing moves; call what it yields when something did."""
        where = self.url(key)
        what = f"Cannot {verb} {where}"
        with anyio.CancelScope(deadline=anyio.current_time() + self._stall_s) as scope:

            def alive() -> None:
                scope.deadline = anyio.current_time() + self._stall_s

            try:
                with mapped(what, where):
                    yield alive
            except StoreError as error:
                if self._credentials is not None and expired(error.__cause__):
                    self._credentials.forget()
                raise
        if scope.cancelled_caught:
            raise TransientStoreError(
                f"{what}: nothing moved for {self._stall_s:g} s", where=where, hint="Check the network and the store"
            )

    async def _retried(self, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress) -> T:
        return await with_retries(call, self._config, progress)

    async def _send(
        self,
        operation: Callable[..., Awaitable[Any]],
        key: str,
        source: Source,
        offset: int,
        length: int,
        progress: Progress,
        **params: Any,
    ) -> tuple[Any, Any]:
        """Send a range of a source with one request; its answer, and the CRC of every chunk."""
        async with self._limiter:
            with self._request("write", key) as alive:

                def sending(count: int) -> None:
                    alive()
                    progress(count)

                body = Body(source, offset, length, sending)
                try:
                    answer = await operation(**self._name(key), Body=body, ContentLength=length, **params)
                except Exception:
                    if body.error is not None:
                        raise body.error from None
                    raise
        body.settle()
        return answer, body.crcs

    async def _put_parts(self, client: Any, key: str, source: Source, progress: Progress) -> Any:
        part = part_size(source.size, self._config.part_bytes)
        upload = await self._retried(lambda _: self._begin(client, key))
        tags: dict[int, str] = {}
        crcs: dict[int, Any] = {}

        async def send(number: int) -> None:
            offset = (number - 1) * part
            answer, crcs[number] = await self._retried(
                lambda counted: self._send(
                    client.upload_part, key, source, offset, min(part, source.size - offset), counted,
                    UploadId=upload, PartNumber=number,
                ),
                progress,
            )  # fmt: skip
            tags[number] = answer["ETag"]

        async def complete(_: Progress) -> None:
            parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
            with self._request("write", key):
                await client.complete_multipart_upload(
                    **self._name(key), UploadId=upload, MultipartUpload={"Parts": parts}
                )

        try:
            await for_each(range(1, -(-source.size // part) + 1), self._in_flight, send)
            await self._retried(complete)
        except BaseException:
            await self._abort(client, key, upload)
            raise
        return [crc for number in sorted(crcs) for crc in crcs[number]]

    async def _begin(self, client: Any, key: str) -> str:
        """The id of a new multipart upload; one that the store began while we were cancelled is aborted."""
        with self._request("write", key):
            request = asyncio.ensure_future(client.create_multipart_upload(**self._name(key), **self._encryption))
            try:
                return str((await asyncio.shield(request))["UploadId"])
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({request}, timeout=ABORT_S)
                if not request.done():
                    request.cancel()
                elif request.exception() is None:
                    await self._abort(client, key, request.result()["UploadId"])
                raise

    async def _abort(self, client: Any, key: str, upload: str) -> None:
        async def abort(_: Progress) -> None:
            with self._request("abort the upload of", key):
                await client.abort_multipart_upload(**self._name(key), UploadId=upload)

        # Why the upload failed matters more than that its parts may have to be left to the bucket's lifecycle rule.
        with anyio.move_on_after(ABORT_S, shield=True), contextlib.suppress(StoreError):
            await self._retried(abort)

    async def _fetch(
        self,
        client: Any,
        key: str,
        file: _File,
        offset: int,
        tag: str | None,
        crc32: Sequence[int] | None,
        progress: Progress,
    ) -> None:
        """Read one chunk of an object into its place and check it."""
        where, count = self.url(key), min(CHUNK_BYTES, file.size - offset)
        ranged = {"Range": f"bytes={offset}-{offset + count - 1}"} if count < file.size else {}
        crc = received = 0
        async with self._limiter:
            with self._request("read", key) as alive:
                answer = await client.get_object(**self._name(key), **ranged)
                async with answer["Body"] as body:
                    if tag is not None and answer.get("ETag") != tag:
                        raise StartOver(f"{where} was replaced while it was read", where=where)
                    if ranged and "ContentRange" not in answer:
                        raise StoreError(f"The store answers a range of {where} with the whole object", where=where)
                    if not ranged:
                        self._check_size(key, int(answer["ContentLength"]), file.size, None)
                    while data := await body.raw_stream.content.readany():
                        if received + len(data) > count:
                            raise TransientStoreError(f"{where} answered with more than was asked for", where=where)
                        file.write(data, offset + received)
                        crc = zlib.crc32(data, crc)
                        received += len(data)
                        progress(len(data))
                        alive()
        _check_length({"ContentLength": count}, received, where)
        if crc32 is not None and crc != crc32[offset // CHUNK_BYTES]:
            raise IntegrityError(f"{key} is damaged at byte {offset}", where=where)

    def _check_size(self, key: str, found: int, size: int | None, crc32: Sequence[int] | None) -> None:
        if size is not None and found != size:
            raise IntegrityError(f"{key} has {found} bytes instead of {size}", where=self.url(key))
        if crc32 is not None and len(crc32) != -(-found // CHUNK_BYTES):
            raise IntegrityError(
                f"{key} has {found} bytes, which are not those of its digest", where=self.url(key)
            )


class _File:
    """The file that ranges are written to, whose errors are not the network's."""

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


def part_size(size: int, part_bytes: int) -> int:
    """Bytes of a part: a multiple of ``CHUNK_BYTES``, at least ``part_bytes``, so large that ``MAX_PARTS`` suffice."""
    least = max(part_bytes, -(-size // MAX_PARTS), 1)
    return -(-least // CHUNK_BYTES) * CHUNK_BYTES


def _check_length(answer: Any, received: int, where: str) -> None:
    expected = answer.get("ContentLength")
    if expected is not None and int(expected) != received:
        raise TransientStoreError(f"{where} ended after {received} of {expected} bytes", where=where)

"""Amazon S3 and what speaks its protocol, over aiobotocore.

Large sources go up as multiparts, large objects come down as ranges, ``parts_in_flight`` of them at a time over all
calls. Content passes through in pieces of ``PIECE_BYTES`` and is digested on the way: memory does not grow with it.

A call on one request does not retry (``RetryStore`` does). The requests of a call that takes many are retried one by
one, since a transfer of thousands of parts would otherwise never get through a store that refuses one in a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio

from ..concurrency import for_each
from ..config import CHUNK_BYTES, Config
from ..errors import IntegrityError, NotFound, StoreError, TransientStoreError
from ._backoff import with_retries
from ._s3_body import Body, LocalFile
from ._s3_client import stream
from ._s3_connection import Connection
from ._s3_errors import StartOver
from .base import Entry, Progress, S3Settings, Source, Store, no_progress

T = TypeVar("T")
Crcs = list[int]  # inside the class, ``list`` is its method

#: S3's limit of parts in one upload.
MAX_PARTS = 10_000
#: How long a cancelled or failed call may take to tidy up, seconds.
ABORT_S = 10.0


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
        self._connection = Connection(root, settings, config)
        self.root = self._connection.root
        self._config = config
        self._encryption = (
            {"ServerSideEncryption": settings.server_side_encryption} if settings.server_side_encryption else {}
        )

    async def put_source(self, key: str, source: Source, progress: Progress = no_progress) -> list[int]:
        client = await self._connection.client()
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
        client = await self._connection.client()
        async with self._connection.limiter:
            with self._connection.request("write", key):
                await client.put_object(
                    **self._connection.name(key), Body=data, ContentLength=len(data), **self._encryption
                )

    async def get_bytes(self, key: str) -> bytes:
        client = await self._connection.client()
        pieces: list[bytes] = []
        async with self._connection.limiter:
            with self._connection.request("read", key) as alive:
                answer = await client.get_object(**self._connection.name(key))
                async with answer["Body"] as body:
                    while data := await stream(body).readany():
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
        client = await self._connection.client()
        total, tag = size, None
        if total is None or not 0 < total <= CHUNK_BYTES:
            # One request more, before all others can start side by side and be told apart from those of a successor.
            total, tag = await self._head(key)
        self._check_size(key, total, size, crc32)
        file = LocalFile(destination, total)
        try:
            await for_each(
                range(0, total, CHUNK_BYTES),
                self._config.parts_in_flight or 1,
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
        return (await self._head(key))[0]

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        client = await self._connection.client()
        params = self._connection.name(prefix)
        params["Prefix"] = params.pop("Key") + "/"

        async def page(_: Progress) -> Any:
            with self._connection.request("list", prefix):
                return await client.list_objects_v2(**params)

        while True:
            answer = await self._retried(page)
            for item in answer.get("Contents", ()):
                # A key that ends in a slash is a console's folder marker, not an object anybody can name.
                if not item["Key"].endswith("/"):
                    yield Entry(self._connection.key(item["Key"]), int(item["Size"]))
            if not answer.get("IsTruncated") or not answer.get("NextContinuationToken"):
                return
            params["ContinuationToken"] = answer["NextContinuationToken"]

    async def delete(self, key: str) -> None:
        client = await self._connection.client()
        with contextlib.suppress(NotFound), self._connection.request("remove", key):
            await client.delete_object(**self._connection.name(key))

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def _head(self, key: str) -> tuple[int, str | None]:
        """Size and ETag."""
        client = await self._connection.client()
        with self._connection.request("read", key):
            answer = await client.head_object(**self._connection.name(key))
            return int(answer["ContentLength"]), answer.get("ETag")

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
    ) -> tuple[Any, Crcs]:
        """Send a range of a source with one request; its answer, and the CRC of every chunk."""
        async with self._connection.limiter:
            with self._connection.request("write", key) as alive:

                def sending(count: int) -> None:
                    alive()
                    progress(count)

                body = Body(source, offset, length, sending)
                try:
                    answer = await operation(**self._connection.name(key), Body=body, ContentLength=length, **params)
                except Exception:
                    if body.error is not None:
                        raise body.error from None
                    raise
        body.settle()
        return answer, body.crcs

    async def _put_parts(self, client: Any, key: str, source: Source, progress: Progress) -> Crcs:
        part = part_size(source.size, self._config.part_bytes)
        upload = await self._retried(lambda _: self._begin(client, key))
        tags: dict[int, str] = {}
        crcs: dict[int, Crcs] = {}

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
            with self._connection.request("write", key):
                await client.complete_multipart_upload(
                    **self._connection.name(key), UploadId=upload, MultipartUpload={"Parts": parts}
                )

        try:
            await for_each(range(1, -(-source.size // part) + 1), self._config.parts_in_flight or 1, send)
            await self._retried(complete)
        except BaseException:
            await self._abort(client, key, upload)
            raise
        return [crc for number in sorted(crcs) for crc in crcs[number]]

    async def _begin(self, client: Any, key: str) -> str:
        """The id of a new multipart upload; one that the store began while we were cancelled is aborted."""
        with self._connection.request("write", key):
            request = asyncio.ensure_future(
                client.create_multipart_upload(**self._connection.name(key), **self._encryption)
            )
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
            with self._connection.request("abort the upload of", key):
                await client.abort_multipart_upload(**self._connection.name(key), UploadId=upload)

        # Why the upload failed matters more than that its parts may have to be left to the bucket's lifecycle rule.
        with anyio.move_on_after(ABORT_S, shield=True), contextlib.suppress(StoreError):
            await self._retried(abort)

    async def _fetch(
        self,
        client: Any,
        key: str,
        file: LocalFile,
        offset: int,
        tag: str | None,
        crc32: Sequence[int] | None,
        progress: Progress,
    ) -> None:
        """Read one chunk of an object into its place and check it."""
        where, count = self.url(key), min(CHUNK_BYTES, file.size - offset)
        ranged = {"Range": f"bytes={offset}-{offset + count - 1}"} if count < file.size else {}
        crc = received = 0
        async with self._connection.limiter:
            with self._connection.request("read", key) as alive:
                answer = await client.get_object(**self._connection.name(key), **ranged)
                async with answer["Body"] as body:
                    if tag is not None and answer.get("ETag") != tag:
                        raise StartOver(f"{where} was replaced while it was read", where=where)
                    if ranged and "ContentRange" not in answer:
                        raise StoreError(f"The store answers a range of {where} with the whole object", where=where)
                    if not ranged:
                        self._check_size(key, int(answer.get("ContentLength", file.size)), file.size, None)
                    while data := await stream(body).readany():
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
            raise IntegrityError(f"{key} has {found} bytes, which are not those of its digest", where=self.url(key))


def part_size(size: int, part_bytes: int) -> int:
    """Bytes of a part: a multiple of ``CHUNK_BYTES``, at least ``part_bytes``, so large that ``MAX_PARTS`` suffice."""
    least = max(part_bytes, -(-size // MAX_PARTS), 1)
    return -(-least // CHUNK_BYTES) * CHUNK_BYTES


def _check_length(answer: Any, received: int, where: str) -> None:
    expected = answer.get("ContentLength")
    if expected is not None and int(expected) != received:
        raise TransientStoreError(f"{where} ended after {received} of {expected} bytes", where=where)

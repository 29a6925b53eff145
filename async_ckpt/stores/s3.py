"""Amazon S3 and what speaks its protocol, over aiobotocore, or over boto3 in threads where that cannot be had.

Large sources go up as multiparts, large objects come down as ranges, ``parts_in_flight`` of them at a time over all
calls. Content passes through in pieces of ``PIECE_BYTES`` and is digested on the way: memory does not grow with it.

A call on one request does not retry (``RetryStore`` does). The requests of a call that takes many are retried one by
one, since a transfer of thousands of parts would otherwise never get through a store that refuses one in a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import anyio
from botocore.exceptions import ClientError

from ..concurrency import for_each
from ..config import CHUNK_BYTES, Config
from ..errors import CheckpointError, IntegrityError, NotFound, StoreError, TransientStoreError
from ..files import crc32
from ._backoff import Counted, with_retries
from ._s3_body import Body, Bytes, Digest, LocalFile, digest
from ._s3_bulk import Elsewhere, Sent, base64_crc
from ._s3_choice import open_client as open_best
from ._s3_connection import Connection
from ._s3_copy import copy_object
from ._s3_errors import StartOver
from ._s3_settings import OpenClient, stream
from .base import Capabilities, Entry, Multipart, PartsLog, Progress, S3Settings, Source, Store, no_progress

T = TypeVar("T")
Crcs = list[int]  # inside the class, ``list`` is its method
#: Parts that are in the store: number → (receipt, CRC-32 of each chunk).
Parts = dict[int, tuple[str, Crcs]]

#: S3's limit of parts in one upload.
MAX_PARTS = 10_000
#: What is read into memory (metadata, manifests) is at most so long.
MAX_BYTES = 256 << 20
#: What is known of conditional writes: nothing yet, that they are honoured, or (empty) that they are not.
_HOPED_FOR, _HONOURED = "hoped for", "honoured"
#: Answers to one whose condition does not hold: nothing there, somebody writes in this moment, something else there.
_NOT_AS_EXPECTED = (404, 409, 412)
#: The ETag of no object.
_NO_TAG = f'"{"0" * 32}"'
#: How long a cancelled or failed call may take to tidy up, seconds.
ABORT_S = 10.0


class Part(NamedTuple):
    """One part of a multipart upload."""

    upload: str
    number: int


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
    open_client : callable
        Makes the client; the default takes the best that can be had.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    capabilities = Capabilities(copy=True, conditional_put=True)

    def __init__(
        self, root: str, settings: S3Settings = S3Settings(), config: Config = Config(),  # noqa: B008
        open_client: OpenClient = open_best,
    ) -> None:  # fmt: skip
        self._connection = Connection(root, settings, config, open_client)
        self.root = self._connection.root
        self._config = config
        self._conditional = _HOPED_FOR
        encryption = settings.server_side_encryption
        self._encryption = {"ServerSideEncryption": encryption} if encryption else {}
        self._encryption_headers = {"x-amz-server-side-encryption": encryption} if encryption else {}

    @property
    def notice(self) -> str:
        return self._connection.notice

    async def put_source(
        self, key: str, source: Source, progress: Progress = no_progress, log: PartsLog | None = None
    ) -> Crcs:
        try:
            if source.size > part_size(source.size, self._config.part_bytes):
                return await self._put_parts(key, source, progress, log)
            return (await self._send(key, source, 0, source.size, progress)).crcs
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error

    async def copy(self, source_key: str, key: str, size: int) -> None:
        await copy_object(self._connection, self._config, self._encryption, source_key, key, size)

    async def put_bytes(self, key: str, data: bytes) -> None:
        await self._send(key, Bytes(key, data), 0, len(data), no_progress)

    async def get_bytes(self, key: str) -> bytes:
        return (await self.get_tagged(key))[0]

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        connection, name = self._connection, self._connection.name(key)
        client, bulk = await connection.client(), await connection.bulk()
        async with connection.small:
            if bulk is not None:
                try:
                    with connection.mapping("read", key):
                        return await bulk.get_bytes(name["Key"], MAX_BYTES)
                except Elsewhere:
                    await connection.moved()
            with connection.request("read", key) as alive:
                pieces: list[bytes] = []
                answer = await client.get_object(**name)
                async with answer["Body"] as body:
                    while data := await stream(body).readany():
                        pieces.append(data)
                        alive()
        content = b"".join(pieces)
        _check_length(answer, len(content), self.url(key))
        return content, str(answer.get("ETag") or "")

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        if self._conditional == _HOPED_FOR and not _knows_conditions(await self._connection.client()):
            self._settle_conditional("")
        if not self._conditional or tag == "":
            await self.put_bytes(key, data)
            return True
        known, written = self._conditional == _HONOURED, await self._put_if(key, data, tag)
        if written and not known:
            # A store that does not know conditions writes as well. It would do so again, and nothing would change.
            self._settle_conditional(_HONOURED if not await self._put_if(key, data, _NO_TAG) else "")
        return written

    def _settle_conditional(self, found: str) -> None:
        self._conditional = found
        self.capabilities = replace(self.capabilities, conditional_put=bool(found))

    async def _put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        connection = self._connection
        client = await connection.client()
        condition = {"IfMatch": tag} if tag is not None else {"IfNoneMatch": "*"}
        if self._config.checksums:
            condition["ChecksumCRC32"] = base64_crc(crc32(data))
        async with connection.small:
            with connection.request("write", key):
                try:
                    await client.put_object(**connection.name(key), **condition, **self._encryption, Body=data)
                except ClientError as error:
                    if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _NOT_AS_EXPECTED:
                        return False
                    raise
        return True

    async def get_file(
        self,
        key: str,
        destination: str,
        *,
        size: int | None = None,
        crc32: Sequence[int] | None = None,
        progress: Progress = no_progress,
    ) -> int:
        total, tag = size, None
        if total is None or not 0 < total <= CHUNK_BYTES:
            # One request more, before all others can start side by side and be told apart from those of a successor.
            total, tag = await self._head(key)
        self._check_size(key, total, size, crc32)
        file, whole = LocalFile(destination, total), False

        async def fetch(offset: int, counted: Progress) -> None:
            await self._fetch(key, file, offset, tag, crc32, counted)

        try:
            if 0 < total <= CHUNK_BYTES:
                await fetch(0, progress)
            else:
                offsets = range(0, total, CHUNK_BYTES)
                at_once = self._config.max_parts_in_flight
                await for_each(offsets, at_once, lambda at: self._retried(lambda counted: fetch(at, counted), progress))
            whole = True
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error
        finally:
            file.close(whole=whole)
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
        self, key: str, source: Source, offset: int, length: int, progress: Progress, part: Part | None = None
    ) -> Sent:
        """Send a range of a source with one request: as the object, or as a part of it."""
        connection, name = self._connection, self._connection.name(key)
        client, bulk = await connection.client(), await connection.bulk()

        def sending(count: int) -> None:
            connection.count(count, of=length)
            progress(count)

        async with connection.lane(length):
            if bulk is not None:
                query = {"partNumber": str(part.number), "uploadId": part.upload} if part else {}
                headers = {} if part else self._encryption_headers
                try:
                    with connection.mapping("write", key):
                        return await bulk.put(
                            name["Key"], source, offset, length, sending, query=query, headers=headers
                        )
                except Elsewhere:
                    await connection.moved()
            facts = await anyio.to_thread.run_sync(digest, source, offset, length)
            with connection.request("write", key) as alive:

                def moving(count: int) -> None:
                    alive()
                    sending(count)

                etag = await self._send_slowly(client, name, source, offset, facts, moving, part)
            return Sent(etag, base64_crc(facts.crc), facts.crcs)

    async def _send_slowly(
        self, client: Any, name: dict[str, str], source: Source, offset: int, facts: Digest, sending: Progress,
        part: Part | None,
    ) -> str:  # fmt: skip
        """The same through botocore, which knows proxies, client certificates and buckets that moved: its ETag."""
        body = Body(source, offset, facts.length, self._connection.throttle, sending)
        params = {**name, "Body": body if facts.length else b"", "ContentLength": facts.length}
        if self._config.checksums:
            params["ChecksumCRC32"] = base64_crc(facts.crc)
        try:
            if part is not None:
                answer = await client.upload_part(**params, PartNumber=part.number, UploadId=part.upload)
            else:
                answer = await client.put_object(**params, **self._encryption)
        except Exception:
            if body.error is not None:
                raise body.error from None
            raise
        body.settle()
        return str(answer["ETag"])

    async def _put_parts(self, key: str, source: Source, progress: Progress, log: PartsLog | None) -> Crcs:
        known = log.known if log is not None else None
        if known is not None:
            # Where it was aborted meanwhile, by a lifecycle rule perhaps, it is begun anew.
            with contextlib.suppress(StartOver):
                return await self._put_missing(key, source, known, progress, log)
        upload = await self._retried(lambda _: self._begin(key))
        multipart = Multipart(upload, part_size(source.size, self._config.part_bytes))
        if log is not None:
            log.began(multipart.upload, multipart.part_bytes)
        return await self._put_missing(key, source, multipart, progress, log)

    async def _put_missing(
        self, key: str, source: Source, multipart: Multipart, progress: Progress, log: PartsLog | None
    ) -> Crcs:
        """Send the parts that are not there yet, and make them an object."""
        size, part_bytes = source.size, multipart.part_bytes
        counted = Counted(progress)
        parts = dict(multipart.parts)
        for number in parts:
            counted(min(part_bytes, size - (number - 1) * part_bytes))

        async def send(number: int) -> None:
            offset = (number - 1) * part_bytes
            part, length = Part(multipart.upload, number), min(part_bytes, size - offset)
            sent = await self._retried(lambda again: self._send(key, source, offset, length, again, part), counted)
            parts[number] = _receipt(sent), sent.crcs
            if log is not None:
                log.sent(number, *parts[number])

        try:
            if parts:
                await self._retried(lambda _: self._find_upload(key, multipart.upload))
            numbers = (number for number in range(1, -(-size // part_bytes) + 1) if number not in parts)
            await for_each(numbers, self._config.max_parts_in_flight, send)
            await self._retried(lambda _: self._complete(key, multipart.upload, parts))
        except StartOver:
            if await self._is_complete(key, parts):
                # It was completed, and the answer was lost, perhaps with the one who asked.
                return [crc for number in sorted(parts) for crc in parts[number][1]]
            counted.take_back()
            await self._abort(key, multipart.upload)
            raise
        except BaseException as error:
            # Where it is remembered, a later try goes on with what is there.
            lasting = isinstance(error, CheckpointError) and not isinstance(error, TransientStoreError)
            if log is None or lasting:
                await self._abort(key, multipart.upload)
            raise
        return [crc for number in sorted(parts) for crc in parts[number][1]]

    async def _find_upload(self, key: str, upload: str) -> None:
        """``StartOver`` if the upload is gone. Asked first, since stores answer a part for none in many ways."""
        client = await self._connection.client()
        with self._connection.request("find the upload of", key):
            await client.list_parts(**self._connection.name(key), UploadId=upload, MaxParts=1)

    async def _complete(self, key: str, upload: str, parts: Parts) -> None:
        listed = []
        for number in sorted(parts):
            checksum, etag = parts[number][0].split(":", 1)
            listed.append({"PartNumber": number, "ETag": etag})
            if self._config.checksums:
                listed[-1]["ChecksumCRC32"] = checksum
        client = await self._connection.client()
        with self._connection.request("write", key):
            await client.complete_multipart_upload(
                **self._connection.name(key), UploadId=upload, MultipartUpload={"Parts": listed}
            )

    async def _is_complete(self, key: str, parts: Parts) -> bool:
        """Whether the object is the one that these parts make, by its ETag."""
        try:
            digests = [bytes.fromhex(parts[number][0].split(":", 1)[1].strip('"')) for number in sorted(parts)]
            _, tag = await self._head(key)
        except (ValueError, StoreError):  # ETags that are no MD5 (encrypted objects) prove nothing.
            return False
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return tag is not None and tag.strip('"') == f"{whole}-{len(digests)}"

    async def _begin(self, key: str) -> str:
        """The id of a new multipart upload; one that the store began while we were cancelled is aborted."""
        client = await self._connection.client()
        params = {**self._connection.name(key), **self._encryption}
        if self._config.checksums:
            params["ChecksumAlgorithm"] = "CRC32"
        with self._connection.request("write", key):
            request = asyncio.ensure_future(client.create_multipart_upload(**params))
            try:
                return str((await asyncio.shield(request))["UploadId"])
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({request}, timeout=ABORT_S)
                if not request.done():
                    request.cancel()
                elif request.exception() is None:
                    await self._abort(key, request.result()["UploadId"])
                raise

    async def _abort(self, key: str, upload: str) -> None:
        client = await self._connection.client()

        async def abort(_: Progress) -> None:
            with self._connection.request("abort the upload of", key):
                await client.abort_multipart_upload(**self._connection.name(key), UploadId=upload)

        # Why the upload failed matters more than that its parts may have to be left to the bucket's lifecycle rule.
        with anyio.move_on_after(ABORT_S, shield=True), contextlib.suppress(StoreError):
            await self._retried(abort)

    async def _fetch(
        self, key: str, file: LocalFile, offset: int, tag: str | None, crc32: Sequence[int] | None, progress: Progress
    ) -> None:
        """Read one chunk of an object into its place and check it."""
        connection, name, where = self._connection, self._connection.name(key), self.url(key)
        client, bulk = await connection.client(), await connection.bulk()
        count = min(CHUNK_BYTES, file.size - offset)
        ranged = count < file.size

        def check(headers: Mapping[str, Any]) -> None:
            if tag is not None and headers.get("etag") != tag:
                raise StartOver(f"{where} was replaced while it was read", where=where)
            if ranged and not headers.get("content-range"):
                raise StoreError(f"The store answers a range of {where} with the whole object", where=where)
            if not ranged:
                self._check_size(key, int(headers.get("content-length") or file.size), file.size, None)

        def moved(received: int) -> None:
            connection.count(received, of=count)
            progress(received)

        async def fetch() -> int:
            if bulk is not None:
                try:
                    with connection.mapping("read", key):
                        return await bulk.get(name["Key"], file, offset, count, moved, ranged=ranged, check=check)
                except Elsewhere:
                    await connection.moved()
            with connection.request("read", key) as alive:

                def moving(received: int) -> None:
                    alive()
                    moved(received)

                return await _fetch_slowly(client, name, file, offset, count, moving, ranged, check)

        async with connection.lane(count):
            crc = await fetch()
        if crc32 is not None and crc != crc32[offset // CHUNK_BYTES]:
            raise IntegrityError(f"{key} is damaged at byte {offset}", where=where)

    def _check_size(self, key: str, found: int, size: int | None, crc32: Sequence[int] | None) -> None:
        if size is not None and found != size:
            raise IntegrityError(f"{key} has {found} bytes instead of {size}", where=self.url(key))
        if crc32 is not None and len(crc32) != -(-found // CHUNK_BYTES):
            raise IntegrityError(f"{key} has {found} bytes, which are not those of its digest", where=self.url(key))


async def _fetch_slowly(
    client: Any, name: Mapping[str, str], file: LocalFile, offset: int, count: int, moved: Progress, ranged: bool,
    check: Callable[[Mapping[str, Any]], None],
) -> int:  # fmt: skip
    """``Bulk.get`` through botocore."""
    params = {"Range": f"bytes={offset}-{offset + count - 1}"} if ranged else {}
    crc = received = 0
    answer = await client.get_object(**name, **params)
    async with answer["Body"] as body:
        check(answer["ResponseMetadata"]["HTTPHeaders"])
        while data := await stream(body).readany():
            if received + len(data) > count:
                raise ConnectionError(f"{count} bytes were asked for and more came")
            file.write(data, offset + received)
            crc = crc32(data, crc)
            received += len(data)
            moved(len(data))
    if received < count:
        raise ConnectionError(f"{count} bytes were asked for and {received} came")
    return crc


def _knows_conditions(client: Any) -> bool:
    """Whether the client can say that a write depends on what is there: botocore before 1.35.69 (November 2024, and in
    many an image) refuses that itself.
    """
    known = client.meta.service_model.operation_model("PutObject").input_shape.members
    return "IfMatch" in known and "IfNoneMatch" in known


def _receipt(sent: Sent) -> str:
    """What is needed to name a part that was sent."""
    return f"{sent.checksum}:{sent.etag}"


def part_size(size: int, part_bytes: int) -> int:
    """Bytes of a part: a multiple of ``CHUNK_BYTES``, at least ``part_bytes``, so large that ``MAX_PARTS`` suffice."""
    least = max(part_bytes, -(-size // MAX_PARTS), 1)
    return -(-least // CHUNK_BYTES) * CHUNK_BYTES


def _check_length(answer: Any, received: int, where: str) -> None:
    expected = answer.get("ContentLength")
    if expected is not None and int(expected) != received:
        raise TransientStoreError(f"{where} ended after {received} of {expected} bytes", where=where)

"""Large objects, sent in parts. A part that is in the store is never sent again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import anyio

from ...config import CHUNK_BYTES, TIDY_UP_S
from ...errors import CheckpointError, NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import Content, Multipart, PartsLog, Progress
from ..retry import Counted, with_retries
from .engine import Engine
from .errors import StartOver
from .objects import Objects, Part

#: S3's limit of parts in one upload.
MAX_PARTS = 10_000
#: Metadata of the object that says which upload it came from.
_MARK, _MARK_LENGTH = "async-ckpt-upload", 32

Crcs = list[int]


def part_size(size: int, part_bytes: int) -> int:
    """Bytes of a part: a multiple of ``CHUNK_BYTES``, at least ``part_bytes``, so large that ``MAX_PARTS`` suffice."""
    least = max(part_bytes, -(-size // MAX_PARTS), 1)
    return -(-least // CHUNK_BYTES) * CHUNK_BYTES


async def put_parts(objects: Objects, key: str, content: Content, progress: Progress, log: PartsLog | None) -> Crcs:
    """Write content as a multipart; see ``Store.put_content``.

    Raises
    ------
    StartOver
        The upload is gone.
    """
    config = objects.engine.config
    known = log.known if log is not None else None
    if known is not None:
        # Where it was aborted meanwhile, by a lifecycle rule perhaps, it is begun anew.
        with contextlib.suppress(StartOver):
            return await _Upload(objects, key, content, known, progress, log).run()
    mark = uuid.uuid4().hex
    upload = await with_retries(lambda _: begin(objects.engine, key, {_MARK: mark}), config, progress)
    multipart = Multipart(f"{mark}:{upload}", part_size(content.size, config.part_bytes))
    if log is not None:
        log.began(multipart.upload, multipart.part_bytes)
    return await _Upload(objects, key, content, multipart, progress, log).run()


class _Upload:
    """One multipart upload on its way."""

    def __init__(
        self, objects: Objects, key: str, content: Content, multipart: Multipart, progress: Progress,
        log: PartsLog | None,
    ) -> None:  # fmt: skip
        self._objects, self._engine, self._config = objects, objects.engine, objects.engine.config
        self._key, self._content = key, content
        mark, colon, rest = multipart.upload.partition(":")
        # One of an older spool has no mark.
        self._mark, self._id = (mark, rest) if colon and len(mark) == _MARK_LENGTH else ("", multipart.upload)
        self._part_bytes = multipart.part_bytes
        self._parts = dict(multipart.parts)
        self._counted = Counted(progress)
        self._log = log

    async def run(self) -> Crcs:
        """Send the parts that are not there yet, and make them an object."""
        size, part_bytes = self._content.size, self._part_bytes
        for number in self._parts:
            self._counted(min(part_bytes, size - (number - 1) * part_bytes))
        try:
            if self._parts:
                await self._retried(self._find)
            numbers = (number for number in range(1, -(-size // part_bytes) + 1) if number not in self._parts)
            await for_each(numbers, self._config.max_parts_in_flight, self._send)
            try:
                await self._retried(self._complete)
            except StoreError:
                # The object may be there all the same: the answer was lost, or late, or has no ETag (Ceph's first).
                if not await self._is_complete():
                    raise
        except StartOver:
            if await self._is_complete():
                return self._crcs()  # An earlier process may have completed it, and died before it heard so.
            self._counted.take_back()
            await abort(self._engine, self._key, self._id)
            raise
        except BaseException as error:
            # Where it is remembered, a later try goes on with what is there.
            lasting = isinstance(error, CheckpointError) and not isinstance(error, TransientStoreError)
            if self._log is None or lasting:
                await abort(self._engine, self._key, self._id)
            raise
        return self._crcs()

    def _crcs(self) -> Crcs:
        return [crc for number in sorted(self._parts) for crc in self._parts[number][1]]

    async def _retried(self, call: Callable[[], Any]) -> None:
        await with_retries(lambda _: call(), self._config)

    async def _send(self, number: int) -> None:
        offset = (number - 1) * self._part_bytes
        length, part = min(self._part_bytes, self._content.size - offset), Part(self._id, number)

        async def send(progress: Progress) -> None:
            with self._engine.mapping("write", self._key):
                sent = await self._objects.put(self._key, self._content, offset, length, progress, part=part)
            self._parts[number] = f"{sent.checksum}:{sent.etag}", sent.crcs

        await with_retries(send, self._config, self._counted)
        if self._log is not None:
            self._log.sent(number, *self._parts[number])

    async def _find(self) -> None:
        """``StartOver`` if the upload is gone. Asked first, since stores answer a part for none in many ways."""
        try:
            await self._engine.call("find the upload of", self._key, "list_parts", UploadId=self._id, MaxParts=1)
        except NotFound as error:  # Ceph's word for it
            raise StartOver(error.what, where=error.where) from error

    async def _complete(self) -> None:
        checksums = (await self._engine.setup()).checksums
        listed = []
        for number in sorted(self._parts):
            checksum, _, etag = self._parts[number][0].partition(":")
            listed.append({"PartNumber": number, "ETag": etag, **({"ChecksumCRC32": checksum} if checksums else {})})
        await self._engine.call(
            "write", self._key, "complete_multipart_upload", UploadId=self._id, MultipartUpload={"Parts": listed}
        )

    async def _is_complete(self) -> bool:
        """Whether the object is the one that these parts make: it says from which upload it came, or its ETag does."""
        if len(self._parts) != -(-self._content.size // self._part_bytes):
            return False
        try:
            with self._engine.mapping("read", self._key):
                answer, size = await self._objects.head(self._key)
        except StoreError:
            return False
        if size != self._content.size:
            return False
        if self._mark and answer.headers.get(f"x-amz-meta-{_MARK}") == self._mark:
            return True
        try:
            digests = [bytes.fromhex(self._parts[n][0].partition(":")[2].strip('"')) for n in sorted(self._parts)]
        except ValueError:  # ETags that are no MD5 (encrypted objects) prove nothing.
            return False
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return answer.headers["etag"].strip('"') == f"{whole}-{len(digests)}"


async def begin(engine: Engine, key: str, marks: dict[str, str]) -> str:
    """The id of a new multipart upload; one that the store began while we were cancelled is aborted."""
    checksums = {"ChecksumAlgorithm": "CRC32"} if (await engine.setup()).checksums else {}
    request = asyncio.ensure_future(engine.call("write", key, "create_multipart_upload", Metadata=marks, **checksums))
    try:
        with engine.mapping("write", key):
            return str((await asyncio.shield(request))["UploadId"])
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait({request}, timeout=TIDY_UP_S)
        if not request.done():
            request.cancel()
        elif request.exception() is None:
            await abort(engine, key, request.result()["UploadId"])
        raise


async def abort(engine: Engine, key: str, upload: str) -> None:
    """Give up a multipart upload, within a few seconds. A failure is not raised, since it would hide why the upload
    failed: the parts are then left to the bucket's lifecycle rule.
    """

    async def ask(_: Progress) -> None:
        await engine.call("abort the upload of", key, "abort_multipart_upload", UploadId=upload)

    with anyio.move_on_after(TIDY_UP_S, shield=True), contextlib.suppress(StoreError):
        await with_retries(ask, engine.config)

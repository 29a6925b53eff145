"""Large objects, sent in parts. A part that is in the store is never sent again."""

from __future__ import annotations

import contextlib
import hashlib
import uuid

from ...config import CHUNK_BYTES
from ...errors import CheckpointError, NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import Content, Earlier, Multipart, PartsLog, Progress, Stored
from ..retry import Counted, with_retries
from .copies import Copies
from .errors import StartOver
from .objects import Find, Objects, Part, Sent
from .uploads import abort, begin

#: S3's limit of parts in one upload.
MAX_PARTS = 10_000
#: Metadata of the object that says which upload it came from.
_MARK, _MARK_LENGTH = "async-ckpt-upload", 32


def part_size(size: int, part_bytes: int) -> int:
    """Bytes of a part: a multiple of ``CHUNK_BYTES``, at least ``part_bytes``, so large that ``MAX_PARTS`` suffice."""
    least = max(part_bytes, -(-size // MAX_PARTS), 1)
    return -(-least // CHUNK_BYTES) * CHUNK_BYTES


async def put_parts(
    objects: Objects, copies: Copies, key: str, content: Content, progress: Progress, log: PartsLog | None,
    earlier: Earlier | None,
) -> Stored:  # fmt: skip
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
            return await _Upload(objects, copies, key, content, known, progress, log, earlier).run()
    mark = uuid.uuid4().hex
    upload = await with_retries(lambda _: begin(objects.engine, key, {_MARK: mark}), config, progress)
    multipart = Multipart(f"{mark}:{upload}", part_size(content.size, config.part_bytes))
    if log is not None:
        log.began(multipart.upload, multipart.part_bytes)
    return await _Upload(objects, copies, key, content, multipart, progress, log, earlier).run()


class _Upload:
    """One multipart upload on its way."""

    def __init__(
        self, objects: Objects, copies: Copies, key: str, content: Content, multipart: Multipart, progress: Progress,
        log: PartsLog | None, earlier: Earlier | None,
    ) -> None:  # fmt: skip
        self._objects, self._engine, self._config = objects, objects.engine, objects.engine.config
        self._copies, self._earlier = copies, earlier
        self._key, self._content = key, content
        mark, colon, rest = multipart.upload.partition(":")
        # One of an older spool has no mark.
        self._mark, self._id = (mark, rest) if colon and len(mark) == _MARK_LENGTH else ("", multipart.upload)
        self._part_bytes = multipart.part_bytes
        self._parts = dict(multipart.parts)
        self._counted = Counted(progress)
        self._log = log
        #: How many bytes of the parts the store has copied.
        self._copied = 0

    async def run(self) -> Stored:
        """Send the parts that are not there yet, and make them an object."""
        size, part_bytes = self._content.size, self._part_bytes
        for number in self._parts:
            self._counted(min(part_bytes, size - (number - 1) * part_bytes))
        try:
            if self._parts:
                await with_retries(lambda _: self._find(), self._config)
            numbers = (number for number in range(1, -(-size // part_bytes) + 1) if number not in self._parts)
            await for_each(numbers, self._config.max_parts_in_flight, self._send)
            try:
                etag = await with_retries(lambda _: self._complete(), self._config)
            except StoreError as error:
                # The object may be there all the same: the answer was lost, or late, or has no ETag (Ceph's first).
                if (found := await self._is_complete()) is None:
                    if self._copied and not isinstance(error, TransientStoreError):
                        # Not only it, but all of it is begun anew, without copies.
                        self._copies.give_up_ranges()
                        raise StartOver(error.what, where=error.where, hint=error.hint) from error
                    raise
                etag = found
            return self._stored(etag or await self._is_complete() or "")
        except StartOver:
            if (found := await self._is_complete()) is not None:
                return self._stored(found)  # An earlier process may have completed it, and died before it heard so.
            self._counted.take_back()
            if self._earlier is not None:
                self._earlier.copied(-self._copied)
            await abort(self._engine, self._key, self._id)
            raise
        except BaseException as error:
            # Where it is remembered, a later try goes on with what is there.
            lasting = isinstance(error, CheckpointError) and not isinstance(error, TransientStoreError)
            if self._log is None or lasting:
                await abort(self._engine, self._key, self._id)
            raise

    def _stored(self, etag: str) -> Stored:
        """What is known of the object that the parts make."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        crcs = [crc for part in parts for crc in part.crc32]
        digests = tuple(digest for part in parts for digest in part.digests)
        # A part that was sent before digests were made has none.
        return Stored(crcs, digests if len(digests) == len(crcs) else (), etag)

    async def _send(self, number: int) -> None:
        offset = (number - 1) * self._part_bytes
        length, part = min(self._part_bytes, self._content.size - offset), Part(self._id, number)

        async def put(progress: Progress, find: Find | None) -> Sent:
            with self._engine.mapping("write", self._key):
                return await self._objects.put(self._key, self._content, offset, length, progress, part=part, find=find)

        async def send(progress: Progress) -> None:
            earlier = self._earlier
            sent = await put(progress, earlier.find if earlier is not None else None)
            if earlier is not None and sent.place is not None:
                etag = await self._copies.part(sent.place, length, self._key, part, sent.checksum)
                if etag is None:
                    if self._copies.has_ranges:  # Else it may still be copied as a whole.
                        earlier.forget(sent.place.key)
                    sent = await put(progress, None)
                else:
                    earlier.copied(length)
                    self._copied += length
                    sent = sent._replace(stored=sent.stored._replace(etag=etag))
            self._parts[number] = sent.stored._replace(etag=f"{sent.checksum}:{sent.stored.etag}")

        await with_retries(send, self._config, self._counted)
        if self._log is not None:
            self._log.sent(number, self._parts[number])

    async def _find(self) -> None:
        """``StartOver`` if the upload is gone. Asked first, since stores answer a part for none in many ways."""
        try:
            await self._engine.call("find the upload of", self._key, "list_parts", UploadId=self._id, MaxParts=1)
        except NotFound as error:  # Ceph's word for it
            raise StartOver(error.what, where=error.where) from error

    async def _complete(self) -> str:
        """Make the parts an object; returns its ETag."""
        checksums = (await self._engine.setup()).checksums
        listed = []
        for number in sorted(self._parts):
            checksum, _, etag = self._parts[number].etag.partition(":")
            listed.append({"PartNumber": number, "ETag": etag, **({"ChecksumCRC32": checksum} if checksums else {})})
        answer = await self._engine.call(
            "write", self._key, "complete_multipart_upload", UploadId=self._id, MultipartUpload={"Parts": listed}
        )
        return str(answer.get("ETag", ""))

    async def _is_complete(self) -> str | None:
        """The ETag of the object, if it is the one that these parts make: it says from which upload it came, or its
        ETag does. None: it is not there.
        """
        if len(self._parts) != -(-self._content.size // self._part_bytes):
            return None
        try:
            with self._engine.mapping("read", self._key):
                answer, size = await self._objects.head(self._key)
        except StoreError:
            return None
        if size != self._content.size:
            return None
        etag = answer.headers["etag"]
        if self._mark and answer.headers.get(f"x-amz-meta-{_MARK}") == self._mark:
            return etag
        try:
            digests = [bytes.fromhex(self._parts[n].etag.partition(":")[2].strip('"')) for n in sorted(self._parts)]
        except ValueError:  # ETags that are no MD5 (encrypted objects) prove nothing.
            return None
        whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return etag if etag.strip('"') == f"{whole}-{len(digests)}" else None

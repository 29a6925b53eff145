"""Copies inside the store, of objects and of ranges for the parts of new ones: no bytes pass through this machine.

What is copied has to be what is meant, so each request names the ETag of its source. Some stores ignore that (moto,
rclone). So the first copy is used as a test: the same request with the ETag of nothing must be refused. Where it is
not, each copy asks for the ETag before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import anyio

from ...errors import IntegrityError, NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import Place, check_size
from ..retry import with_retries
from .objects import Objects, Part
from .uploads import abort, begin

#: Above this a copy is made of parts, side by side: the store copies each at the speed of a disk, and a request for
#: gigabytes would outlast its time limit. (S3 itself demands it above 5 GiB.)
ONE_REQUEST_BYTES = 512 << 20
PART_BYTES = 256 << 20
#: S3's limit for a copy by one request.
MAX_BYTES = 5 << 30

#: A copy of parts is not tried any more after so many that failed, if none ever succeeded.
_MOST_FAILED = 3
#: The ETag of no object.
_NO_TAG = f'"{"0" * 32}"'


class CopiedPart(NamedTuple):
    """The ETag of a part that was copied, and whether the store has said that it is what was meant."""

    etag: str
    is_proven: bool


class Copies:
    """See the module's docstring.

    Parameters
    ----------
    objects : Objects
        What asks for sizes and ETags.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects, self._engine = objects, objects.engine
        #: Whether the store refuses to copy a source of another ETag; None: not known yet.
        self._heeds_tags: bool | None = None
        self._trying = anyio.Lock()
        #: Ranges that could not be copied; None: one could.
        self._failed: int | None = 0

    async def copy(self, source_key: str, key: str, size: int, etag: str) -> str:
        """See ``Store.copy``."""
        place = Place(source_key, etag, size, 0)
        if not etag:
            place = await self._look(place)
        if source_key == key:
            return place.etag
        if size > ONE_REQUEST_BYTES:
            try:
                return await self._copy_parts(place, key)
            except (TransientStoreError, NotFound):
                raise
            except StoreError:
                if size > MAX_BYTES:
                    raise
                # Some stores cannot copy parts.
        answer = await self._ask(place, key, "copy_object", {})
        return str(answer["CopyObjectResult"].get("ETag", ""))

    def give_up(self) -> None:
        """The store does something else than to copy ranges: it is not asked again."""
        self._failed = _MOST_FAILED

    async def part(self, place: Place, length: int, key: str, part: Part, checksum: str) -> CopiedPart | None:
        """Make ``length`` bytes of an object a part of another one. None: it cannot be done, and the bytes are to be
        sent.

        Parameters
        ----------
        checksum : str
            The CRC-32 that it has to have, in base64; compared where the store tells.
        """
        if self._failed is not None and self._failed >= _MOST_FAILED:
            return None
        try:
            result = await self._range(place, length, key, part)
        except StoreError as error:
            # One that is missing, or another one by now, says nothing of the store.
            if self._failed is not None and not isinstance(error, (TransientStoreError, NotFound, IntegrityError)):
                self._failed += 1
            return None
        found = result.get("ChecksumCRC32")
        if self._failed is not None and self._failed < _MOST_FAILED:
            self._failed = None
        return CopiedPart(str(result["ETag"]), found is not None) if found in (None, checksum) else None

    async def _copy_parts(self, place: Place, key: str) -> str:
        upload = await begin(self._engine, key, {})
        tags: dict[int, str] = {}

        async def copy(number: int) -> None:
            first = (number - 1) * PART_BYTES
            there = place._replace(offset=first)
            length = min(PART_BYTES, place.size - first)

            async def once(_: object) -> None:
                tags[number] = (await self._range(there, length, key, Part(upload, number)))["ETag"]

            await with_retries(once, self._engine.config)

        try:
            await for_each(range(1, -(-place.size // PART_BYTES) + 1), self._engine.config.files_in_flight, copy)
            parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
            answer = await self._engine.call(
                "copy to", key, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            await abort(self._engine, key, upload)
            raise
        return str(answer.get("ETag", ""))

    async def _range(self, place: Place, length: int, key: str, part: Part) -> dict[str, Any]:
        fields = {
            "CopySourceRange": f"bytes={place.offset}-{place.offset + length - 1}",
            "PartNumber": part.number, "UploadId": part.upload,
        }  # fmt: skip
        answer = await self._ask(place, key, "upload_part_copy", fields)
        with self._engine.mapping("copy to", key):
            result: dict[str, Any] = answer["CopyPartResult"]
            if "ETag" not in result:  # rclone gives none, and nothing can be made of such a part.
                raise KeyError("ETag")
        return result

    async def _ask(self, place: Place, key: str, method: str, fields: dict[str, Any]) -> Any:
        """Ask for a copy of what ``place`` means."""
        if self._heeds_tags is None:
            async with self._trying:
                if self._heeds_tags is None:
                    return await self._try(place, key, method, fields)
        if self._heeds_tags is False:
            await self._look(place)
        return await self._request(place, place.etag, key, method, fields)

    async def _try(self, place: Place, key: str, method: str, fields: dict[str, Any]) -> Any:
        """The first copy, and whether the store would have refused another source."""
        answer = await self._request(place, place.etag, key, method, fields)
        try:
            # A store that ignores tags does the same once more.
            answer = await self._request(place, _NO_TAG, key, method, fields)
        except TransientStoreError:
            return answer
        except StoreError:
            self._heeds_tags = True
            return answer
        self._heeds_tags = False
        await self._look(place)
        return answer

    async def _request(self, place: Place, etag: str, key: str, method: str, fields: dict[str, Any]) -> Any:
        source = {"Bucket": self._engine.bucket, "Key": self._engine.name(place.key)}
        async with self._engine.small:
            return await self._engine.call(
                "copy to", key, method, CopySource=source, CopySourceIfMatch=etag, **fields
            )  # fmt: skip

    async def _look(self, place: Place) -> Place:
        """The place with the ETag that its object has.

        Raises
        ------
        NotFound, IntegrityError
            It is not there; it has another size, or another ETag than is known.
        """
        where = f"{self._engine.root}/{place.key}"
        with self._engine.mapping("read", place.key):
            answer, found = await self._objects.head(place.key)
            etag = answer.headers["etag"]
        check_size(place.key, where, found, place.size, None)
        if place.etag and place.etag.strip('"') != etag.strip('"'):
            raise IntegrityError(f"{place.key} was replaced since it was stored", where=where)
        return place._replace(etag=etag)

"""Copies inside the store, of objects and of ranges for the parts of new ones: no bytes pass through this machine.

What is copied has to be what is meant, so each request names the ETag of its source. Some stores ignore that (moto,
rclone, Ceph). So the first copy of an object is used as a test: the same request with the ETag of nothing must be
refused. Where it is not, the source is asked for its ETag after each copy: what it has then, it had before.

Ranges are tried out in an upload that is given up then: a store that does not know them may take the request for an
empty part (rclone), or copy the whole object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Mapping
from typing import Any

import anyio
from botocore.exceptions import ClientError

from ...errors import IntegrityError, NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import Place, check_size
from ..retry import with_retries
from .answers import code_of
from .objects import Objects, Part
from .uploads import abort, begin

#: Above this a copy is made of parts, side by side: the store copies each at the speed of a disk, and a request for
#: gigabytes would outlast its time limit. (S3 itself demands it above 5 GiB.)
ONE_REQUEST_BYTES = 512 << 20
PART_BYTES = 256 << 20
#: S3's limit for a copy by one request.
MAX_BYTES = 5 << 30

#: How often ranges are tried out where the store gives no clear answer.
_MOST_TRIED = 3
#: The ETag of no object.
_NO_TAG = f'"{"0" * 32}"'
_PRECONDITION_FAILED = 412
#: Methods of the client.
_OBJECT, _RANGE = "copy_object", "upload_part_copy"


class Copies:
    """See the module's docstring.

    Parameters
    ----------
    objects : Objects
        What asks for sizes and ETags.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects, self._engine = objects, objects.engine
        #: Whether the store refuses to copy a source of another ETag, by method, as far as that is known.
        self._heeds_tags: dict[str, bool] = {}
        self._trying = anyio.Lock()
        #: Whether it copies ranges; None: not known yet. How often that was tried.
        self.has_ranges: bool | None = None
        self._tried = 0

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
        if _OBJECT not in self._heeds_tags:
            async with self._trying:
                if _OBJECT not in self._heeds_tags:
                    return await self._first(place, key)
        answer = await self._ask(_OBJECT, place, key)
        return await self._made(answer.get("CopyObjectResult", {}), place, key)

    async def part(self, place: Place, length: int, key: str, part: Part, checksum: str) -> str | None:
        """Make ``length`` bytes of an object a part of another one. Returns its ETag; None: it cannot be done, and the
        bytes are to be sent.

        Parameters
        ----------
        checksum : str
            The CRC-32 that it has to have, in base64; compared where the store tells.
        """
        if self.has_ranges is None:
            async with self._trying:
                if self.has_ranges is None:
                    await self._try_ranges(place, length, key)
        if not self.has_ranges:
            return None
        config, result = self._engine.config, dict[str, Any]()
        # Its source may be gone, or another one; and what takes longer than any answer may take is sent.
        with contextlib.suppress(StoreError), anyio.move_on_after(config.answer_timeout_s):
            result = await with_retries(lambda _: self._range(place, length, key, part), config)
        return str(result["ETag"]) if result and result.get("ChecksumCRC32", checksum) == checksum else None

    def give_up_ranges(self) -> None:
        """The store cannot make an object of copied parts."""
        self.has_ranges = False

    async def _try_ranges(self, place: Place, length: int, key: str) -> None:
        """Find out whether the store copies a range as it should."""
        self._tried += 1
        try:
            # Something that is there, to begin with.
            await self._look(place)
            upload = await begin(self._engine, key, {})
            try:
                short = max(length - 1, 1)  # Not the whole object, so that one that is copied whole is found out.
                await self._range(place, short, key, Part(upload, 1))
                answer = await self._engine.call("copy to", key, "list_parts", UploadId=upload)
                sizes = [part.get("Size") for part in answer.get("Parts", ())]
                self._heeds_tags[_RANGE] = await self._is_refused(
                    self._range(place._replace(etag=_NO_TAG), length, key, Part(upload, 1))
                )
                self.has_ranges = sizes == [short]
            finally:
                await abort(self._engine, key, upload)
        except (TransientStoreError, NotFound, IntegrityError):
            if self._tried >= _MOST_TRIED:
                self.has_ranges = False
        except StoreError:
            self.has_ranges = False

    @staticmethod
    async def _is_refused(copying: Awaitable[Any]) -> bool:
        """Whether the store refuses it because of the ETag. Whatever else it says is said of something else."""
        try:
            await copying
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, ClientError):
                return code_of(cause)[1] == _PRECONDITION_FAILED
            raise
        return False

    async def _first(self, place: Place, key: str) -> str:
        """The first copy of an object, and whether the store would have refused another source."""
        answer = await self._request(_OBJECT, place, key)
        # A store that ignores tags does the same once more.
        self._heeds_tags[_OBJECT] = await self._is_refused(self._request(_OBJECT, place._replace(etag=_NO_TAG), key))
        if not self._heeds_tags[_OBJECT]:
            await self._look(place)
        return await self._made(answer.get("CopyObjectResult", {}), place, key)

    async def _made(self, result: Mapping[str, Any], source: Place, key: str) -> str:
        """See that a copy was made, and return its ETag. Whoever says the source's has looked at it; where the answer
        has another one, or none, the copy is looked at.

        Raises
        ------
        IntegrityError
            The answer says that it was, and it was not.
        """
        etag = str(result.get("ETag") or "")
        if etag.strip('"') == source.etag.strip('"'):
            return etag
        try:
            return (await self._look(source._replace(key=key, etag=etag))).etag
        except NotFound as error:
            raise IntegrityError(
                f"The store says that it has copied {source.key} to {key}, and nothing is there", where=error.where
            ) from error

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
            if _RANGE not in self._heeds_tags:  # Nobody has tried it.
                await self._look(place)
            parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
            answer = await self._engine.call(
                "copy to", key, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            await abort(self._engine, key, upload)
            raise
        return await self._made(answer, place, key)

    async def _range(self, place: Place, length: int, key: str, part: Part) -> dict[str, Any]:
        span = f"bytes={place.offset}-{place.offset + length - 1}"
        answer = await self._ask(
            _RANGE, place, key, CopySourceRange=span, PartNumber=part.number, UploadId=part.upload
        )  # fmt: skip
        with self._engine.mapping("copy to", key):
            result: dict[str, Any] = answer["CopyPartResult"]
            if "ETag" not in result:  # rclone gives none, and nothing can be made of such a part.
                raise KeyError("ETag")
        return result

    async def _ask(self, method: str, place: Place, key: str, **fields: Any) -> Any:
        """Ask for a copy of what ``place`` means."""
        answer = await self._request(method, place, key, **fields)
        if self._heeds_tags.get(method) is False:
            await self._look(place)
        return answer

    async def _request(self, method: str, place: Place, key: str, **fields: Any) -> Any:
        source = {"Bucket": self._engine.bucket, "Key": self._engine.name(place.key)}
        async with self._engine.small:
            return await self._engine.call(
                "copy to", key, method, CopySource=source, CopySourceIfMatch=place.etag, **fields
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

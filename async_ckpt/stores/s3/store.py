"""Amazon S3 and what speaks its protocol, over aiobotocore and aiohttp, or over boto3 in threads.

Large sources go up as multiparts, large objects come down as ranges, ``parts_in_flight`` of them at a time over all
calls. Content passes through in pieces and is digested on the way: memory does not grow with it.

A call on one request does not retry (``RetryStore`` does). The requests of a call that takes many are retried one by
one, since a transfer of thousands of parts would otherwise never get through a store that refuses one in a hundred.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

import anyio

from ...config import CHUNK_BYTES, Config
from ...errors import IntegrityError, NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import (
    MAX_BYTES,
    Capabilities,
    Content,
    Earlier,
    ListedObject,
    OpenUpload,
    PartsLog,
    Place,
    Progress,
    Store,
    Stored,
    check_size,
    no_progress,
)
from ..retry import with_retries
from ..same_content import SameContent
from . import S3Settings
from .body import LocalFile
from .choice import open_client as open_best
from .conditions import Conditions
from .copies import Copies
from .engine import Engine
from .errors import StartOver
from .multipart import part_size, put_parts
from .objects import Objects
from .settings import OpenClient

_UPDATE = "Update the store: it does not list as S3 does"


class S3Store(Store):
    """Objects below ``root`` in a bucket. Make it anywhere; it connects in the loop that first uses it.

    Parameters
    ----------
    root : str
        ``s3://bucket/prefix``.
    settings : S3Settings or callable
        What the client is made with; or what returns that: called in a thread, when the store is first used and again
        where it failed.
    config : Config
        ``part_bytes``, ``parts_in_flight``, ``unsigned_payload``, and the limits of requests and retries.
    open_client : callable
        Makes the client; the default takes the best that can be had.

    Raises
    ------
    UsageError
        ``root`` is not such an address.
    """

    def __init__(
        self, root: str, settings: S3Settings | Callable[[], S3Settings] = S3Settings(),  # noqa: B008
        config: Config = Config(), open_client: OpenClient = open_best,  # noqa: B008
    ) -> None:  # fmt: skip
        given = settings
        self._engine = Engine(root, (lambda: given) if isinstance(given, S3Settings) else given, config, open_client)
        self._objects = Objects(self._engine)
        self._conditions = Conditions(self._objects)
        self._copies, self._same = Copies(self._objects), SameContent()
        self.root = self._engine.root
        self._config = config

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # what a store can do is found out on the way
        return Capabilities(copy=True, conditional_put=self._conditions.kept, create_only=self._conditions.creates)

    @property
    def notice(self) -> str:
        return self._engine.notice

    def pace(self, bytes_per_s: float) -> bool:
        self._objects.pace(bytes_per_s)
        return True

    async def put_content(
        self, key: str, content: Content, progress: Progress = no_progress, log: PartsLog | None = None,
        earlier: Earlier | None = None,
    ) -> Stored:  # fmt: skip
        try:
            if content.size > part_size(content.size, self._config.part_bytes):
                if earlier is not None and self._copies.has_ranges is False:
                    same = await anyio.to_thread.run_sync(self._same.find, content, earlier)
                    if same is not None and (etag := await self._copy_known(same.place, key, earlier)) is not None:
                        return same.stored._replace(etag=etag)
                return await put_parts(self._objects, self._copies, key, content, progress, log, earlier)
            return await self._put_whole(key, content, progress, earlier)
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error

    async def _put_whole(self, key: str, content: Content, progress: Progress, earlier: Earlier | None) -> Stored:
        """Write content by one request."""

        def find(digests: Sequence[str]) -> Place | None:
            place = earlier.find(digests) if earlier is not None else None
            return place if place is not None and (place.offset, place.size) == (0, content.size) else None

        with self._engine.mapping("write", key):
            sent = await self._objects.put(key, content, 0, content.size, progress, find=find)
        if earlier is None or sent.place is None:
            return sent.stored
        if (etag := await self._copy_known(sent.place, key, earlier)) is not None:
            return sent.stored._replace(etag=etag)
        with self._engine.mapping("write", key):
            return (await self._objects.put(key, content, 0, content.size, progress)).stored

    async def _copy_known(self, place: Place, key: str, earlier: Earlier) -> str | None:
        """Copy a whole object of an earlier checkpoint, and return the ETag of the copy; None: it is to be sent."""
        try:
            etag = await self._copies.copy(place.key, key, place.size, place.etag)
        except StoreError:  # It was deleted or replaced meanwhile, or this store copies no such object.
            earlier.forget(place.key)
            return None
        earlier.copied(place.size)
        return etag

    async def copy(self, source_key: str, key: str, size: int, etag: str = "") -> str:
        return await self._copies.copy(source_key, key, size, etag)

    async def put_bytes(self, key: str, data: bytes) -> None:
        with self._engine.mapping("write", key):
            await self._objects.put_bytes(key, data)

    async def get_tagged(self, key: str) -> tuple[bytes, str]:
        with self._engine.mapping("read", key):
            return await self._objects.get_bytes(key, MAX_BYTES)

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        return await self._conditions.put(key, data, tag)

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
        check_size(key, self.url(key), total, size, crc32)
        file, whole = LocalFile(destination, total), False

        async def fetch(offset: int, counted: Progress) -> None:
            count = min(CHUNK_BYTES, total - offset)
            with self._engine.mapping("read", key):
                crc = await self._objects.get(key, file, offset, count, counted, tag)
            if crc32 is not None and crc != crc32[offset // CHUNK_BYTES]:
                raise IntegrityError(f"{key} is damaged at byte {offset}", where=self.url(key))

        try:
            if 0 < total <= CHUNK_BYTES:
                await fetch(0, progress)
            else:
                offsets = range(0, total, CHUNK_BYTES)
                at_once = self._config.max_parts_in_flight
                await for_each(
                    offsets, at_once,
                    lambda at: with_retries(lambda counted: fetch(at, counted), self._config, progress),
                )  # fmt: skip
            whole = True
        except StartOver as error:
            raise TransientStoreError(error.what, where=error.where, hint=error.hint) from error
        finally:
            file.close(whole=whole)
        return total

    async def size(self, key: str) -> int:
        return (await self._head(key))[0]

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        params = {"Prefix": f"{self._engine.name(prefix)}/{beginning}"}
        seen: set[str] = set()
        while True:
            answer = await with_retries(
                lambda _: self._engine.call("list", prefix, "list_objects_v2", **params), self._config
            )
            for item in answer.get("Contents", ()):
                # A key that ends in a slash is a console's folder marker, not an object anybody can name.
                name = item.get("Key", "")
                if not name.startswith(params["Prefix"]) or "Size" not in item:
                    raise StoreError(
                        f"The listing of {self.url(prefix)} has an entry {name!r} that is none of it, or has no size",
                        where=self.url(prefix), hint=_UPDATE,
                    )  # fmt: skip
                if not name.endswith("/"):
                    yield ListedObject(self._engine.key(name), int(item["Size"]), _seconds(item.get("LastModified")))
            if not answer.get("IsTruncated"):
                return
            token = answer.get("NextContinuationToken")
            if not token or token in seen:
                # A short list would look like checkpoints that are gone, and the same page again never ends.
                what = "the same token again" if token else "no token"
                raise StoreError(
                    f"The listing of {self.url(prefix)} goes on, says the store, and gives {what} for the next page",
                    where=self.url(prefix), hint=_UPDATE,
                )  # fmt: skip
            seen.add(token)
            params["ContinuationToken"] = token

    async def delete(self, key: str) -> None:
        with contextlib.suppress(NotFound):
            await self._engine.call("remove", key, "delete_object")

    async def open_uploads(self, prefix: str) -> AsyncIterator[OpenUpload]:
        params = {"Prefix": f"{self._engine.name(prefix)}/"}

        async def ask() -> Any:
            return await self._engine.call("list the uploads of", prefix, "list_multipart_uploads", **params)

        while True:
            try:
                answer = await with_retries(lambda _: ask(), self._config)
            except (NotFound, StartOver):  # What rclone says before the first one.
                return
            for item in answer.get("Uploads", ()):
                began = _seconds(item.get("Initiated"))
                if began is not None and str(item.get("Key", "")).startswith(params["Prefix"]):
                    yield OpenUpload(self._engine.key(item["Key"]), item["UploadId"], began)
            marks = {"KeyMarker": answer.get("NextKeyMarker"), "UploadIdMarker": answer.get("NextUploadIdMarker")}
            # Without a mark, or with the same one again, it would never end. What is not listed is not removed.
            if not answer.get("IsTruncated") or not marks["KeyMarker"] or marks.items() <= params.items():
                return
            params |= {name: mark for name, mark in marks.items() if mark}

    async def abort(self, key: str, upload: str) -> None:
        with contextlib.suppress(NotFound, StartOver):
            await self._engine.call("abort the upload of", key, "abort_multipart_upload", UploadId=upload)

    async def aclose(self) -> None:
        await self._engine.aclose()

    async def _head(self, key: str) -> tuple[int, str]:
        """Size and ETag."""
        with self._engine.mapping("read", key):
            answer, size = await self._objects.head(key)
        return size, answer.headers["etag"]


def _seconds(moment: object) -> float | None:
    """Seconds since 1970 of a date in an answer; None: there is none."""
    return moment.timestamp() if isinstance(moment, datetime) else None

"""Making one object another's content inside the store: no bytes pass through this machine."""

from __future__ import annotations

from urllib.parse import quote

from ...errors import NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import check_size
from ..retry import with_retries
from .engine import Engine
from .multipart import Listed, abort, begin, complete
from .objects import Objects, Part

#: Above this a copy is made of parts, side by side: the store copies each at the speed of a disk, and a request for
#: gigabytes would outlast its time limit. (S3 itself demands it above 5 GiB.)
ONE_REQUEST_BYTES = 512 << 20
PART_BYTES = 256 << 20
#: S3's limit for a copy by one request.
MAX_BYTES = 5 << 30


async def copy_object(objects: Objects, source_key: str, key: str, size: int) -> None:
    """See ``Store.copy``."""
    engine = objects.engine
    with engine.mapping("read", source_key):
        answer, found = await objects.head(source_key)
    check_size(source_key, f"{engine.root}/{source_key}", found, size, None)
    if source_key == key:
        return
    # What somebody replaces meanwhile is not copied.
    folder = f"{engine.bucket}/object" if engine.bucket.startswith("arn:") else engine.bucket
    origin = {
        "x-amz-copy-source": quote(f"{folder}/{engine.name(source_key)}", safe="/-_.~"),
        "x-amz-copy-source-if-match": answer.headers["etag"],
    }
    if size > ONE_REQUEST_BYTES:
        try:
            await _copy_parts(engine, origin, key, size)
            return
        except (TransientStoreError, NotFound):
            raise
        except StoreError:
            if size > MAX_BYTES:
                raise
            # Some stores cannot copy parts.
    async with engine.small:
        await engine.call("copy to", key, "CopyObject", "PUT", headers=origin)


async def _copy_parts(engine: Engine, origin: dict[str, str], key: str, size: int) -> None:
    upload = await begin(engine, key)
    parts: list[Listed] = []

    async def copy(number: int) -> None:
        first = (number - 1) * PART_BYTES
        headers = {**origin, "x-amz-copy-source-range": f"bytes={first}-{min(first + PART_BYTES, size) - 1}"}

        async def once(_: object) -> None:
            async with engine.small:
                params = Part(upload, number).params
                answer = await engine.call("copy to", key, "UploadPartCopy", "PUT", params, headers=headers)
            parts.append(Listed(number, answer.text("ETag")))

        await with_retries(once, engine.config)

    try:
        await for_each(range(1, -(-size // PART_BYTES) + 1), engine.config.files_in_flight, copy)
        await complete(engine, "copy to", key, upload, sorted(parts))
    except BaseException:
        await abort(engine, key, upload)
        raise

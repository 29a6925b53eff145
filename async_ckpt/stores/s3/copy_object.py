"""Making one object another's content inside the store: no bytes pass through this machine."""

from __future__ import annotations

from typing import Any

from ...errors import NotFound, StoreError, TransientStoreError
from ...system.concurrency import for_each
from ..base import check_size
from ..retry import with_retries
from .engine import Engine
from .multipart import abort, begin
from .objects import Objects

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
    origin = {
        "CopySource": {"Bucket": engine.bucket, "Key": engine.name(source_key)},
        "CopySourceIfMatch": answer.headers["etag"],
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
        await engine.call("copy to", key, "copy_object", **origin)


async def _copy_parts(engine: Engine, origin: dict[str, Any], key: str, size: int) -> None:
    upload = await begin(engine, key, {})
    tags: dict[int, str] = {}

    async def copy(number: int) -> None:
        first = (number - 1) * PART_BYTES
        span = f"bytes={first}-{min(first + PART_BYTES, size) - 1}"

        async def once(_: object) -> None:
            async with engine.small:
                with engine.mapping("copy to", key):
                    answer = await engine.call(
                        "copy to", key, "upload_part_copy", **origin, CopySourceRange=span, PartNumber=number,
                        UploadId=upload,
                    )  # fmt: skip
                    tags[number] = answer["CopyPartResult"]["ETag"]

        await with_retries(once, engine.config)

    try:
        await for_each(range(1, -(-size // PART_BYTES) + 1), engine.config.files_in_flight, copy)
        parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
        await engine.call(
            "copy to", key, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        await abort(engine, key, upload)
        raise

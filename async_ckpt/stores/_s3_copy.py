"""Making one object another's content inside the store: no bytes pass through this machine."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio

from ..concurrency import for_each
from ..config import Config
from ..errors import IntegrityError, NotFound, StoreError, TransientStoreError
from ._backoff import with_retries
from ._s3_connection import Connection

#: Above this a copy is made of parts, side by side: the store copies each at the speed of a disk, and a request for
#: gigabytes would outlast its time limit. (S3 itself demands it above 5 GiB.)
ONE_REQUEST_BYTES = 512 << 20
PART_BYTES = 256 << 20
#: S3's limit for a copy by one request.
MAX_BYTES = 5 << 30

_TIDY_S = 10.0


async def copy_object(
    connection: Connection, config: Config, encryption: dict[str, str], source_key: str, key: str, size: int
) -> None:
    """See ``Store.copy``."""
    client = await connection.client()
    source = {**connection.name(source_key)}
    with connection.request("read", source_key):
        answer = await client.head_object(**source)
    if int(answer["ContentLength"]) != size:
        raise IntegrityError(
            f"{source_key} has {answer['ContentLength']} bytes instead of {size}",
            where=f"{connection.root}/{source_key}",
        )
    if source_key == key:
        return
    # What somebody replaces meanwhile is not copied.
    origin = {"CopySource": source, "CopySourceIfMatch": answer["ETag"]}
    if size > ONE_REQUEST_BYTES:
        try:
            await _copy_parts(connection, client, config, encryption, origin, key, size)
            return
        except (TransientStoreError, NotFound):
            raise
        except StoreError:
            if size > MAX_BYTES:
                raise
            # Some stores cannot copy parts.
    async with connection.small:
        with connection.request("copy to", key):
            await client.copy_object(**connection.name(key), **origin, **encryption)


async def _copy_parts(
    connection: Connection, client: Any, config: Config, encryption: dict[str, str], origin: dict[str, Any], key: str,
    size: int,
) -> None:  # fmt: skip
    name = connection.name(key)
    with connection.request("copy to", key):
        upload = (await client.create_multipart_upload(**name, **encryption))["UploadId"]
    tags: dict[int, str] = {}

    async def copy(number: int) -> None:
        first = (number - 1) * PART_BYTES
        span = f"bytes={first}-{min(first + PART_BYTES, size) - 1}"

        async def once(_: object) -> None:
            async with connection.small:
                with connection.request("copy to", key):
                    answer = await client.upload_part_copy(
                        **name, **origin, CopySourceRange=span, PartNumber=number, UploadId=upload
                    )
                    tags[number] = answer["CopyPartResult"]["ETag"]

        await with_retries(once, config, lambda _: None)

    try:
        await for_each(range(1, -(-size // PART_BYTES) + 1), config.files_in_flight, copy)
        parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
        with connection.request("copy to", key):
            await client.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})
    except BaseException:
        tidy = connection.request("abort the upload of", key)
        with anyio.move_on_after(_TIDY_S, shield=True), contextlib.suppress(StoreError), tidy:
            await client.abort_multipart_upload(**name, UploadId=upload)
        raise

"""Beginning and giving up multipart uploads."""

from __future__ import annotations

import asyncio
import contextlib

import anyio

from ...config import TIDY_UP_S
from ...errors import StoreError
from ..base import Progress
from ..retry import with_retries
from .engine import Engine


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

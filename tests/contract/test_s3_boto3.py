"""S3Store keeps the contract over boto3's botocore in threads."""

from __future__ import annotations

from typing import ClassVar

import anyio
import pytest

from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import UsageError
from async_ckpt.stores.s3 import S3Settings, boto3_transport
from async_ckpt.stores.s3.settings import OpenClient
from async_ckpt.stores.s3.store import S3Store
from harness.s3.servers import S3Server, moto_server, rclone_server
from harness.stores.content import BytesContent, crcs_of, pattern

from .store_suite import LARGE, run
from .test_s3_store import MotoSuite
from .test_s3_store import TestRclone as RcloneSuite

__all__ = ["moto_server", "rclone_server"]

THREADS: list[OpenClient] = [boto3_transport.open_client]


class TestMotoOverThreads(MotoSuite):
    open_client: ClassVar[list[OpenClient]] = THREADS


@pytest.mark.long
class TestRcloneOverThreads(RcloneSuite):
    open_client: ClassVar[list[OpenClient]] = THREADS


def test_a_cancelled_part_ends_before_all_of_it_was_sent(moto_server: S3Server) -> None:
    read: list[int] = []

    class Counted(BytesContent):
        def pread(self, count: int, offset: int) -> bytes:
            read.append(count)
            return super().pread(count, offset)

    async def check() -> None:
        store = S3Store("s3://bucket/cancelled", S3Settings(moto_server.client_params), Config(), *THREADS)
        try:
            with anyio.CancelScope() as scope:
                await store.put_content("a/key", Counted(pattern(CHUNK_BYTES)), lambda count: scope.cancel())
            assert scope.cancelled_caught
            assert not [entry async for entry in store.list("a")]
        finally:
            await store.aclose()

    run(check)
    assert sum(read) < 2 * CHUNK_BYTES  # Once for the digest.


class TestSettings:
    def test_a_setting_that_no_client_takes_is_refused_by_name(self) -> None:
        async def check() -> None:
            store = S3Store("s3://bucket/x", S3Settings({"region_name": "x", "colour": "red"}), Config(), *THREADS)
            try:
                with pytest.raises(UsageError, match="colour"):
                    await store.put_bytes("a", b"x")
            finally:
                await store.aclose()

        run(check)

    def test_a_signed_part_counts_once(self, moto_server: S3Server) -> None:
        data = pattern(LARGE)

        async def check() -> None:
            params = {**moto_server.client_params, "config": {"s3": {"payload_signing_enabled": True}}}
            store = S3Store("s3://bucket/signed", S3Settings(params), Config(), *THREADS)
            try:
                sent: list[int] = []
                assert (await store.put_content("a/key", BytesContent(data), sent.append)).crc32 == crcs_of(data)
                assert sum(sent) == LARGE
                assert await store.get_bytes("a/key") == data
            finally:
                await store.aclose()

        run(check)

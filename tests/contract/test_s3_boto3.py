"""S3Store keeps the contract over boto3's botocore in threads, with the bulk requests beside it and without them."""

from __future__ import annotations

from typing import Any, ClassVar

import anyio
import pytest

from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import UsageError
from async_ckpt.stores import _s3_boto3
from async_ckpt.stores._s3_settings import OpenClient
from async_ckpt.stores.base import S3Settings
from async_ckpt.stores.s3 import S3Store

from ..support.faulty import BytesSource, crcs_of, pattern
from ..support.servers import S3Server, moto_server, rclone_server
from .store_suite import LARGE, run
from .test_s3_store import TestMoto as MotoSuite
from .test_s3_store import TestRclone as RcloneSuite

__all__ = ["moto_server", "rclone_server"]

THREADS: list[OpenClient] = [_s3_boto3.open_client]


class TestMotoOverThreads(MotoSuite):
    open_client: ClassVar[list[OpenClient]] = THREADS


class TestRcloneOverThreads(RcloneSuite):
    open_client: ClassVar[list[OpenClient]] = THREADS


class TestContentThroughTheClient(MotoSuite):
    """As behind a proxy: the bulk requests cannot be made, and all content passes through botocore."""

    open_client: ClassVar[list[OpenClient]] = THREADS

    def make_store(self, **client_params: Any) -> S3Store:
        store = super().make_store(**client_params)
        store._connection._bulk_known = True
        return store

    # These are about the bulk requests; and moto keeps a checksum only where another header announces it.
    test_a_user_who_asks_for_checksums_gets_them = None
    test_an_upload_that_fails_for_good_leaves_no_open_multipart = None
    test_an_object_that_is_replaced_while_it_is_read_is_not_mixed = None

    def test_a_cancelled_part_ends_its_thread_before_all_of_it_was_sent(self) -> None:
        read: list[int] = []

        class Counted(BytesSource):
            def pread(self, count: int, offset: int) -> bytes:
                read.append(count)
                return super().pread(count, offset)

        async def check() -> None:
            store = self.make_store()
            try:
                with anyio.CancelScope() as scope:
                    await store.put_source("a/key", Counted(pattern(CHUNK_BYTES)), lambda count: scope.cancel())
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

    def test_a_part_sent_in_two_signed_passes_counts_once(self, moto_server: S3Server) -> None:
        data = pattern(LARGE)

        async def check() -> None:
            params = {**moto_server.client_params, "config": {"s3": {"payload_signing_enabled": True}}}
            store = S3Store("s3://bucket/signed", S3Settings(params), Config(), *THREADS)
            store._connection._bulk_known = True
            try:
                sent: list[int] = []
                assert await store.put_source("a/key", BytesSource(data), sent.append) == crcs_of(data)
                assert sum(sent) == LARGE
                assert any(count < 0 for count in sent)
                assert await store.get_bytes("a/key") == data
            finally:
                await store.aclose()

        run(check)

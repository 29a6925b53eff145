"""S3Store keeps the contract on Ceph, which keeps conditions and wants tags without quotes."""

from __future__ import annotations

import pytest

from harness.s3.ceph import ceph_server
from harness.s3.servers import S3Server

from .s3_clients import BothClients, Copying, Resuming
from .store_suite import run
from .test_s3_store import TestRclone as RcloneSuite
from .test_s3_transfers import TestResumeOnMoto as MotoResume

__all__ = ["ceph_server"]

pytestmark = pytest.mark.long


class OnCeph:
    @pytest.fixture(autouse=True)
    def _server(self, ceph_server: S3Server) -> None:
        self.server = ceph_server


class TestCeph(OnCeph, BothClients, RcloneSuite):
    copies_ranges = True
    server_breaks_off = False
    server_mixes = False
    races_are_errors = True  # 500 UnknownError

    def test_the_store_finds_out_that_conditions_are_kept(self) -> None:
        async def check() -> None:
            async with self.store() as store:
                assert await store.put_if("a/key", b"one", None)
                _, tag = await store.get_tagged("a/key")
                assert await store.put_if("a/key", b"two", tag)
                assert not await store.put_if("a/key", b"three", tag)
                assert store.capabilities.conditional_put

        run(check)

    def test_a_first_condition_with_the_right_tag_is_no_refusal(self) -> None:
        """Which is what a task finds whose ``latest`` is there already."""

        async def check() -> None:
            async with self.store() as store:
                await store.put_bytes("a/key", b"one")
            async with self.store() as store:
                _, tag = await store.get_tagged("a/key")
                assert await store.put_if("a/key", b"two", tag)
                assert not await store.put_if("a/key", b"three", tag)
                assert store.capabilities.conditional_put
                assert await store.get_bytes("a/key") == b"two"

        run(check)


class TestResumeOnCeph(OnCeph, BothClients, Resuming, MotoResume):
    pass


class TestCopyOnCeph(OnCeph, BothClients, Copying):
    pass

"""Suites of S3 as they run on further servers: over either transport, each test with both."""

from __future__ import annotations

import pytest

from async_ckpt.config import Config
from async_ckpt.stores.s3 import S3Settings
from async_ckpt.stores.s3.aiohttp_transport import AioTransport
from async_ckpt.stores.s3.boto3_transport import ThreadTransport
from async_ckpt.stores.s3.store import S3Store
from async_ckpt.stores.s3.transport import OpenTransport

from .test_s3_transfers import CopySuite, ResumeSuite, new_root


class BothTransports:
    """For a suite that makes its stores with ``transport``."""

    transport: list[OpenTransport]

    @pytest.fixture(
        autouse=True,
        params=[
            pytest.param(AioTransport, id="aiohttp"),
            pytest.param(ThreadTransport, id="boto3"),
        ],
    )
    def _transport(self, request: pytest.FixtureRequest) -> None:
        self.transport = [request.param]


class Resuming(ResumeSuite):
    """The suite, with a transport that can be chosen."""

    transport: list[OpenTransport]

    def make_store(self) -> S3Store:
        config = Config(parts_in_flight=1, store_attempts=1)
        return S3Store(self.root, S3Settings(self.server.client_params), config, *self.transport)


class Copying(CopySuite):
    """The suite, with a transport that can be chosen."""

    transport: list[OpenTransport]

    def make_store(self) -> S3Store:
        return S3Store(new_root(), S3Settings(self.server.client_params), Config(store_attempts=1), *self.transport)

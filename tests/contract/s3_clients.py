"""Suites of S3 as they run on further servers: over either client, each test with both."""

from __future__ import annotations

import pytest

from async_ckpt.config import Config
from async_ckpt.stores.s3 import S3Settings, aiohttp_transport, boto3_transport
from async_ckpt.stores.s3.settings import OpenClient
from async_ckpt.stores.s3.store import S3Store

from .test_s3_transfers import CopySuite, ResumeSuite, new_root


class BothClients:
    """For a suite that makes its stores with ``open_client``."""

    open_client: list[OpenClient]

    @pytest.fixture(
        autouse=True,
        params=[
            pytest.param(aiohttp_transport.open_client, id="aiobotocore"),
            pytest.param(boto3_transport.open_client, id="boto3"),
        ],
    )
    def _open_client(self, request: pytest.FixtureRequest) -> None:
        self.open_client = [request.param]


class Resuming(ResumeSuite):
    """The suite, with a client that can be chosen."""

    open_client: list[OpenClient]

    def make_store(self) -> S3Store:
        config = Config(parts_in_flight=1, store_attempts=1)
        return S3Store(self.root, S3Settings(self.server.client_params), config, *self.open_client)


class Copying(CopySuite):
    """The suite, with a client that can be chosen."""

    open_client: list[OpenClient]

    def make_store(self) -> S3Store:
        return S3Store(new_root(), S3Settings(self.server.client_params), Config(store_attempts=1), *self.open_client)

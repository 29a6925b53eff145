"""What carries requests to S3: aiohttp where it is there, else boto3's connections in threads, and why is said."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from async_ckpt.config import Config
from async_ckpt.stores import open_store
from async_ckpt.stores.base import StoreSpec
from async_ckpt.stores.s3 import S3Settings, aiohttp_transport, transport
from async_ckpt.stores.s3.boto3_transport import ThreadTransport
from async_ckpt.stores.s3.settings import look_up
from async_ckpt.stores.s3.transport import Transport, best_transport

SETTINGS = {
    "region_name": "x", "aws_access_key_id": "a", "aws_secret_access_key": "b", "endpoint_url": "http://127.0.0.1:1"
}  # fmt: skip


@pytest.fixture
def no_aiohttp(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """Makes its import fail: with an error, or as if it could not be found."""

    def take_away(error: Exception | None) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "aiohttp"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, aiohttp_transport.__name__)
        if error is None:
            monkeypatch.setitem(sys.modules, "aiohttp", None)
            return

        class Broken(importlib.abc.MetaPathFinder):
            def find_spec(self, name: str, *_: Any) -> None:
                if name == "aiohttp":
                    raise error

        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    return take_away


def chosen(**params: Any) -> Transport:
    async def check() -> Transport:
        found = look_up(S3Settings(SETTINGS | params), Config(), "bucket")
        return best_transport(found.network, found.timeouts, Config())

    return anyio.run(check)


def test_aiohttp_is_taken_without_a_word() -> None:
    found = chosen()
    assert isinstance(found, aiohttp_transport.AioTransport)
    assert found.notice == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "aiohttp is not installed"),
        (ModuleNotFoundError("No module named 'yarl'", name="yarl"), "yarl is not installed"),
        (ImportError("a symbol is missing"), "ImportError: a symbol is missing"),
        (AttributeError("no URL"), "AttributeError: no URL"),
    ],
    ids=repr,
)
def test_without_aiohttp_threads_are_taken_and_the_remedy_is_said(
    no_aiohttp: Callable[[Exception | None], None], error: Exception | None, said: str
) -> None:
    no_aiohttp(error)
    found = chosen()
    assert isinstance(found, ThreadTransport)
    assert said in found.notice
    assert "@pypi(packages={'aiohttp'" in found.notice
    assert "\n" not in found.notice


def test_an_aiohttp_that_is_too_old_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_transport, "VERSION", (3, 11))
    found = chosen()
    assert isinstance(found, ThreadTransport)
    assert "aiohttp 3.11 is installed, which is too old" in found.notice


def test_proxies_that_only_botocore_knows_go_through_it() -> None:
    found = chosen(config={"proxies_config": {"proxy_ca_bundle": "/ca.pem"}})
    assert isinstance(found, ThreadTransport)
    assert "proxies_config" in found.notice


def test_the_notice_reaches_who_opened_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_AIOHTTP", (4, 0))

    async def check() -> None:
        config = Config(store_attempts=1)
        store = open_store(StoreSpec("metaflow-s3", "s3://bucket/x", {"client_params": SETTINGS}), config)
        try:
            assert store.notice == ""
            with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
                await store.get_bytes("key")
            assert "too old" in store.notice
        finally:
            await store.aclose()

    anyio.run(check)

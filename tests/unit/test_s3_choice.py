"""Which S3 client is taken: aiobotocore's where it is there and fits, else botocore's in threads, and why is said."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib import metadata
from typing import Any

import anyio
import botocore
import pytest

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.stores import open_store
from async_ckpt.stores.base import StoreSpec
from async_ckpt.stores.s3 import S3Settings, aiohttp_transport, boto3_transport, choice
from async_ckpt.stores.s3.answers import Answer
from async_ckpt.stores.s3.choice import fits_requirement, why_not_aiobotocore
from async_ckpt.stores.s3.settings import OpenedClient

SETTINGS = {
    "region_name": "x", "aws_access_key_id": "a", "aws_secret_access_key": "b", "endpoint_url": "http://127.0.0.1:1"
}  # fmt: skip


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    why_not_aiobotocore.cache_clear()
    yield
    why_not_aiobotocore.cache_clear()


@pytest.fixture
def _undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiobotocore as it lies in an image that was put together without its description."""

    def requires(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)


async def nobody(operation: str, request: Any) -> Answer:
    """Where no request is sent."""
    raise AssertionError(operation)


def opened(params: dict[str, Any] = SETTINGS) -> OpenedClient:
    async def check() -> OpenedClient:
        async with AsyncExitStack() as stack:
            return await choice.open_client(stack, S3Settings(params), Config(), nobody)

    return anyio.run(check)


def test_aiobotocore_is_taken_without_a_word_where_it_fits() -> None:
    found = opened()
    assert not isinstance(found.client, boto3_transport.ThreadClient)
    assert found.notice == ""


@pytest.mark.usefixtures("_undescribed")
def test_without_aiobotocore_threads_are_taken_and_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, aiohttp_transport.__name__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiobotocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiobotocore", None)  # As if it could not be found.
    found = opened()
    assert isinstance(found.client, boto3_transport.ThreadClient)
    assert "aiobotocore is not installed" in found.notice
    assert "@pypi(packages={'aiobotocore'" in found.notice
    assert "\n" not in found.notice


def test_an_aiobotocore_for_another_botocore_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["aiohttp>=3", "botocore<1.34.107,>=1.34.70"])
    found = opened()
    assert isinstance(found.client, boto3_transport.ThreadClient)
    assert "needs botocore<1.34.107,>=1.34.70" in found.notice
    assert f"botocore {botocore.__version__} is installed" in found.notice


@pytest.mark.usefixtures("_undescribed")
@pytest.mark.parametrize("error", [AttributeError("no S3RegionRedirector"), TypeError("metaclass conflict")])
def test_an_import_that_fails_in_whatever_way_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    imported = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if name == ".aiohttp_transport":
            raise error
        return imported(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    assert str(error) in opened().notice


def test_a_client_that_cannot_be_made_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aiobotocore 2.13 with botocore 1.44: ``missing 3 required positional arguments``."""

    class Session:
        def create_client(self, *_: Any, **__: Any) -> Any:
            raise TypeError("f() missing 3 required positional arguments")

    monkeypatch.setattr(aiohttp_transport, "get_session", Session)
    found = opened()
    assert isinstance(found.client, boto3_transport.ThreadClient)
    assert "missing 3 required positional arguments" in found.notice


def test_settings_that_no_client_takes_are_still_refused() -> None:
    with pytest.raises(UsageError, match="colour"):
        opened({**SETTINGS, "colour": "red"})


def test_proxies_that_only_botocore_knows_go_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened({**SETTINGS, "config": {"proxies_config": {"proxy_ca_bundle": "/ca.pem"}}})
    assert isinstance(found.client, boto3_transport.ThreadClient)
    assert "proxies_config" in found.notice


def test_the_notice_reaches_who_opened_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "why_not_aiobotocore", lambda: "it is Monday")

    async def check() -> None:
        config = Config(store_attempts=1)
        store = open_store(StoreSpec("metaflow-s3", "s3://bucket/x", {"client_params": SETTINGS}), config)
        try:
            assert store.notice == ""
            with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
                await store.get_bytes("key")
            assert "it is Monday" in store.notice
        finally:
            await store.aclose()

    anyio.run(check)


@pytest.mark.parametrize(
    ("requirement", "version", "fits"),
    [
        ("botocore<1.43.118,>=1.43.115", "1.43.117", True),
        ("botocore<1.43.118,>=1.43.115", "1.43.118", False),
        ("botocore<1.43.118,>=1.43.115", "1.43.9", False),
        ("botocore (<1.27.60,>=1.27.59)", "1.44.8", False),
        ("botocore==1.23.24", "1.23.24", True),
        ("botocore==1.23.24", "1.23.25", False),
        ("botocore", "1.0", True),
        ("botocore!=1.2.3,<=2", "1.2.3", False),
        ("botocore<1.2; extra == 'old'", "1.44.8", None),
        ("botocore-stubs>=1", "0.1", None),
        ("aiohttp<4", "1.44.8", None),
    ],
)
def test_a_requirement_allows_what_it_says(requirement: str, version: str, fits: bool | None) -> None:
    assert fits_requirement(requirement, version) is fits

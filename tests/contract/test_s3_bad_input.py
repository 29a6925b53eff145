"""What is wrong with a store or its settings is said: what, where, why and the way out. Nothing hangs."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_ckpt.config import Config
from async_ckpt.errors import StoreError, TransientStoreError, UsageError
from async_ckpt.stores.s3 import S3Settings, aiohttp_transport, boto3_transport
from async_ckpt.stores.s3.settings import OpenClient
from async_ckpt.stores.s3.store import S3Store
from harness.s3.servers import BUCKET, S3Server, moto_server, moto_tls_server
from harness.stores.content import BytesContent, pattern

from .store_suite import LARGE, run
from .test_s3_store import Misbehaving, answer, plain_client

__all__ = ["moto_server", "moto_tls_server"]

QUICK = Config(store_attempts=1, connect_timeout_s=3, answer_timeout_s=3, stall_timeout_s=3)
CLIENTS = {"aiobotocore": aiohttp_transport.open_client, "boto3": boto3_transport.open_client}


@pytest.fixture(
    params=[
        pytest.param(client, id=name, marks=[pytest.mark.long] * (name == "boto3")) for name, client in CLIENTS.items()
    ]
)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    client: OpenClient = request.param
    return client


def refused(store: S3Store, call: Callable[[S3Store], Awaitable[Any]] | None = None) -> StoreError:
    """The error of a small write, or of another call."""
    found: list[StoreError] = []

    async def check() -> None:
        try:
            with pytest.raises((StoreError, UsageError)) as caught:
                await (call(store) if call else store.put_bytes("a/key", b"x"))
            found.append(caught.value)  # type: ignore[arg-type]
        finally:
            await store.aclose()

    run(check, timeout_s=30)
    return found[0]


def test_a_certificate_for_another_name_says_so(moto_tls_server: tuple[S3Server, str], open_client: OpenClient) -> None:
    server, certificate = moto_tls_server
    url = server.url.replace("127.0.0.1", "localhost")
    settings = S3Settings(server.client_params | {"endpoint_url": url, "verify": certificate})
    error = refused(S3Store("s3://bucket/x", settings, QUICK, open_client))
    assert not isinstance(error, TransientStoreError)
    assert "name that its certificate is for" in error.hint


@pytest.mark.parametrize("spelling", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle in ~/.aws/config", "verify"])
@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "garbage"])
def test_a_file_of_certificates_that_cannot_be_read_is_named_with_who_named_it(
    spelling: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_client: OpenClient
) -> None:
    bundle, params = tmp_path / "bundle.pem", {}
    if content is not None:
        bundle.write_text(content)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    if spelling == "verify":
        params["verify"] = str(bundle)
    elif spelling.isupper():
        monkeypatch.setenv(spelling, str(bundle))
    else:
        config = tmp_path / "config"
        config.write_text(f"[default]\nca_bundle = {bundle}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    settings = S3Settings(S3Server("https://127.0.0.1:1", 0).client_params | params)
    error = refused(S3Store("s3://bucket/x", settings, QUICK, open_client))
    assert not isinstance(error, TransientStoreError)
    assert str(bundle) in str(error)
    assert ("METAFLOW_S3_VERIFY_CERTIFICATE" if spelling == "verify" else spelling) in str(error)


def test_a_certificate_authority_is_found_in_every_spelling(
    moto_tls_server: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_client: OpenClient
) -> None:
    server, certificate = moto_tls_server
    config = tmp_path / "config"
    config.write_text(f"[default]\nca_bundle = {certificate}\n")

    async def check() -> None:
        store = S3Store("s3://bucket/spelled", S3Settings(server.client_params), QUICK, open_client)
        try:
            await store.put_bytes("a/key", b"x")
        finally:
            await store.aclose()

    spellings = {"AWS_CA_BUNDLE": certificate, "REQUESTS_CA_BUNDLE": certificate, "AWS_CONFIG_FILE": config}
    for name, value in spellings.items():
        with monkeypatch.context() as patch:
            for other in spellings:
                patch.delenv(other, raising=False)
            patch.setenv(name, str(value))
            run(check)


def test_a_web_page_is_no_store(open_client: OpenClient) -> None:
    page = answer("404 Not Found", b"<html><head><title>x</title></head><body><h1>Welcome to nginx</h1></body></html>")
    server = Misbehaving(page)
    calls: list[Callable[[S3Store], Awaitable[Any]]] = [
        lambda store: store.put_bytes("a/key", b"x"),
        lambda store: store.get_bytes("a/key"),  # A page that says "not found" says nothing of an object.
        lambda store: store.put_content("a/key", BytesContent(pattern(LARGE))),
    ]

    async def check() -> None:
        for call in calls:
            async with server.store(QUICK, open_client) as store:
                with pytest.raises(StoreError, match="Welcome to nginx") as caught:
                    await call(store)  # type: ignore[arg-type]
                assert type(caught.value) is StoreError
                assert "METAFLOW_S3_ENDPOINT_URL" in caught.value.hint

    run(check)


@pytest.mark.parametrize("length", [1024, 1025])
def test_a_name_that_is_too_long_for_s3_is_refused_before_anything_is_sent(
    length: int, moto_server: S3Server, open_client: OpenClient
) -> None:
    root = f"s3://{BUCKET}/long-{os.getpid()}"
    prefix = len(f"long-{os.getpid()}/")
    key = "ü" * ((length - prefix) // 2) + "x" * ((length - prefix) % 2)
    store = S3Store(root, S3Settings(moto_server.client_params), QUICK, open_client)
    if length > 1024:
        error = refused(store, lambda store: store.put_bytes(key, b"x"))
        assert "1,025" in str(error)
        assert "shorter names" in error.hint
        return

    async def check() -> None:
        try:
            await store.put_bytes(key, b"x")
        finally:
            await store.aclose()

    run(check)


def test_nobody_answers_and_that_is_known_within_the_limit(open_client: OpenClient) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        settings = S3Settings(S3Server(url, 0).client_params)
        limits = Config(store_attempts=1, connect_timeout_s=0.5, answer_timeout_s=0.5, stall_timeout_s=0.5)
        store = S3Store("s3://bucket/x", settings, limits, open_client)
        assert isinstance(refused(store), TransientStoreError)


def test_what_the_user_wants_of_the_store_arrives(moto_server: S3Server, open_client: OpenClient) -> None:
    config = Config(s3_kms_key_id="a-key", s3_bucket_key=True, s3_storage_class="STANDARD_IA", s3_requester_pays=True)
    store = S3Store(f"s3://{BUCKET}/wanted", S3Settings(moto_server.client_params), config, open_client)

    async def check() -> None:
        try:
            await store.put_content("a/one", BytesContent(b"x"))
            await store.put_content("a/parts", BytesContent(pattern(LARGE)))
            await store.copy("a/one", "a/copy", 1)
            await store.put_bytes("a/metadata", b"{}")
            for key in ("a/one", "a/parts", "a/copy", "a/metadata"):
                found = plain_client(store).head_object(Bucket=store._engine.bucket, Key=store._engine.name(key))
                assert found["ServerSideEncryption"] == "aws:kms"
                assert found["SSEKMSKeyId"].endswith("a-key")
                assert found.get("StorageClass", "STANDARD") == ("STANDARD" if key == "a/metadata" else "STANDARD_IA")
        finally:
            await store.aclose()

    run(check)


class Impatient(Misbehaving):
    """Hangs up on a body that is silent for too long, as servers do."""

    def __init__(self, silence_s: float) -> None:
        super().__init__(answer("200 OK", fields='ETag: "1"\r\n'))
        self._silence_s = silence_s

    async def _serve(self, stream: Any) -> None:
        receive, silence_s = stream.receive, self._silence_s

        async def receive_soon() -> Any:
            with anyio.fail_after(silence_s):
                return await receive()

        stream.receive = receive_soon
        try:
            await super()._serve(stream)
        except TimeoutError:
            await stream.send(answer("400 Bad Request", b"<Error><Code>RequestTimeout</Code></Error>"))


@pytest.mark.long
def test_a_low_bandwidth_leaves_no_connection_silent(open_client: OpenClient) -> None:
    server = Impatient(silence_s=4)
    data = pattern(800_000)
    limits = Config(max_bandwidth_bytes_s=400_000, store_attempts=1)

    async def check() -> None:
        async with server.store(limits, open_client) as store, anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(store.put_content, f"key-{number}", BytesContent(data))

    run(check, timeout_s=60)
    assert len(server.requests) == 4

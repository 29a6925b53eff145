"""The S3 client is made with what the user configured; only what is left open is filled in."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.config import Config as BotoConfig

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.stores.s3 import S3Settings, settings
from async_ckpt.stores.s3.aiohttp_transport import open_client
from async_ckpt.stores.s3.answers import Answer
from async_ckpt.stores.s3.engine import Engine
from async_ckpt.stores.s3.settings import UserHeaders, is_loopback, merged_config, sends_checksums, validates
from harness.s3.servers import S3Server, moto_server

__all__ = ["moto_server"]

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "eu-north-1"}


async def nobody(operation: str, request: Any) -> Answer:
    """Where no request is sent."""
    raise AssertionError(operation)


def test_the_users_config_counts_and_the_rest_is_ours() -> None:
    given = BotoConfig(read_timeout=7, s3={"addressing_style": "path"}, retries={"total_max_attempts": 9})
    merged = merged_config(BotoConfig, given, Config(connect_timeout_s=3))
    assert (merged.read_timeout, merged.connect_timeout, merged.s3["addressing_style"]) == (7, 3, "path")
    assert merged.retries["total_max_attempts"] == 1


@pytest.mark.parametrize(
    ("given", "environment", "checksums", "sent"),
    [
        (None, {}, True, True),
        (None, {}, False, False),
        (None, {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}, True, False),
        (None, {"AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_SUPPORTED"}, True, True),
        ({"request_checksum_calculation": "when_required"}, {}, True, False),
        (BotoConfig(request_checksum_calculation="when_required"), {}, True, False),
    ],
)
def test_checksums_are_sent_unless_the_user_said_otherwise_in_any_spelling(
    monkeypatch: pytest.MonkeyPatch, given: Any, environment: dict[str, str], checksums: bool, sent: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sends_checksums(given, Config(checksums=checksums)) is sent


def test_the_stores_checksums_are_asked_for_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert validates(None)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    assert not validates(None)


def test_what_is_wanted_of_the_store_stands_on_the_requests_that_it_is_for() -> None:
    config = Config(s3_kms_key_id="k", s3_bucket_key=True, s3_storage_class="STANDARD_IA", s3_requester_pays=True)
    wanted = UserHeaders(S3Settings(), config)
    encryption = {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "k",
        "x-amz-server-side-encryption-bucket-key-enabled": "true",
    }
    payer, storage = {"x-amz-request-payer": "requester"}, {"x-amz-storage-class": "STANDARD_IA"}
    for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        assert wanted.headers(operation) == payer | encryption | storage
    assert wanted.headers("PutObject", small=True) == payer | encryption
    for operation in ("UploadPart", "GetObject", "ListObjectsV2", "DeleteObject"):
        assert wanted.headers(operation) == payer


def test_a_key_of_ones_own_goes_with_every_request_that_touches_content() -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    wanted = UserHeaders(S3Settings(), Config(s3_sse_c_key=key))
    assert wanted.needs_tls
    for operation in ("PutObject", "UploadPart", "GetObject", "HeadObject", "CreateMultipartUpload"):
        assert wanted.headers(operation)["x-amz-server-side-encryption-customer-key"] == key
    assert wanted.headers("CopyObject")["x-amz-copy-source-server-side-encryption-customer-key"] == key
    assert wanted.headers("ListObjectsV2") == {}


def test_a_key_of_ones_own_is_not_sent_where_everybody_can_read_it() -> None:
    async def check() -> None:
        key = base64.b64encode(bytes(range(32))).decode()
        settings = S3Settings({**KEYS, "endpoint_url": "http://store.example"})
        engine = Engine("s3://bucket/x", lambda: settings, Config(s3_sse_c_key=key))
        try:
            with pytest.raises(UsageError, match="https://"):
                await engine.setup()
        finally:
            await engine.aclose()

    anyio.run(check)


def test_client_params_are_not_changed() -> None:
    params: dict[str, Any] = {**KEYS, "config": {"s3": {"addressing_style": "path"}}}
    before = json.dumps(params)

    async def check() -> None:
        async with AsyncExitStack() as stack:
            await open_client(stack, S3Settings(params), Config(), nobody)

    anyio.run(check)
    assert json.dumps(params) == before


@pytest.mark.parametrize(
    ("url", "unsigned_payload", "given", "signed"),
    [
        ("https://store.example", False, {}, False),
        ("http://127.0.0.1:9000", False, {}, False),
        ("http://[::1]:9000", False, {}, False),
        ("http://store.example", False, {}, True),
        ("http://store.example", True, {}, False),
        ("https://store.example", False, {"payload_signing_enabled": True}, True),
    ],
)
def test_payloads_are_signed_where_nothing_else_guards_them_and_that_is_said(
    url: str, unsigned_payload: bool, given: dict[str, Any], signed: bool
) -> None:
    async def check() -> None:
        settings = S3Settings({**KEYS, "endpoint_url": url, "config": {"s3": given}})
        engine = Engine("s3://bucket/x", lambda: settings, Config(unsigned_payload=unsigned_payload))
        try:
            await engine.setup()
            assert (await engine.setup()).signs_content is signed
            assert ("signed" in engine.notice) is signed
        finally:
            await engine.aclose()

    anyio.run(check)


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({"HTTPS_PROXY": "http://user:pass@proxy.example:3128"}, "proxy.example:3128"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "store.example"}, ""),
        ({"NO_PROXY": "store.example"}, ""),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, ""),
    ],
)
def test_proxies_are_found_as_botocore_finds_them_and_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], proxy: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings._environment_proxy.cache_clear()

    async def check() -> None:
        settings = S3Settings({**KEYS, "endpoint_url": "https://store.example"})
        engine = Engine("s3://bucket/x", lambda: settings, Config())
        try:
            await engine.setup()
            assert engine.notice == (f"requests go through the proxy {proxy}" if proxy else "")
        finally:
            await engine.aclose()

    anyio.run(check)
    settings._environment_proxy.cache_clear()


def test_a_setting_that_no_client_takes_is_refused_by_name() -> None:
    async def check() -> None:
        async with AsyncExitStack() as stack:
            with pytest.raises(UsageError, match="colour"):
                await open_client(stack, S3Settings({**KEYS, "colour": "red"}), Config(), nobody)

    anyio.run(check)


def test_loopback_is_this_machine_only() -> None:
    assert is_loopback("http://localhost:1")
    assert is_loopback("http://127.0.0.2")
    assert not is_loopback("http://127.0.0.1.example.com")
    assert not is_loopback("http://10.0.0.1")


def in_metaflow(code: str, tmp_path: Path, **environment: str) -> Any:
    """Run code that prints JSON in a process that Metaflow is configured for by environment variables."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW_", "AWS_", "REQUESTS_"))
    }
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"METAFLOW_HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "USER": "u"} | environment,
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


SETTINGS = """
import json
from metaflow import metaflow_config
from async_ckpt.stores.metaflow import s3_retry_attempts, s3_settings
before = json.dumps(metaflow_config.DATATOOLS_CLIENT_PARAMS)
found = s3_settings()
key = found.credentials()() if found.credentials else None
params = dict(found.client_params)
config = {k: v if isinstance(v, (str, int, float, dict)) else repr(type(v)) for k, v in params.pop("config").items()}
print(json.dumps([params, config, found.server_side_encryption, s3_retry_attempts(), key and key.access_key]))
"""


def test_metaflows_settings_are_carried_over(tmp_path: Path) -> None:
    params, config, encryption, attempts, key = in_metaflow(
        SETTINGS, tmp_path,
        METAFLOW_S3_ENDPOINT_URL="http://127.0.0.1:9000", METAFLOW_S3_VERIFY_CERTIFICATE="/ca.pem",
        METAFLOW_S3_SERVER_SIDE_ENCRYPTION="aws:kms", METAFLOW_S3_RETRY_COUNT="3",
        METAFLOW_DATATOOLS_CLIENT_PARAMS='{"config": {"read_timeout": 5, "s3": {"addressing_style": "path"}}}',
        AWS_ACCESS_KEY_ID="key-id", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="eu-north-1",
    )  # fmt: skip
    assert params == {"endpoint_url": "http://127.0.0.1:9000", "verify": "/ca.pem", "region_name": "eu-north-1"}
    assert config["read_timeout"] == 5
    assert config["s3"]["addressing_style"] == "path"
    assert "retries" not in config
    assert (encryption, attempts, key) == ("aws:kms", 4, "key-id")


ROLE = """
import json, os
from async_ckpt.stores.base import Access, StoreSpec
from async_ckpt.stores.metaflow import s3_settings
params = {"endpoint_url": os.environ["ENDPOINT"], "region_name": "eu-west-1", "config": {"read_timeout": 7}}
access = Access(os.environ.get("ROLE"), {"region": ["region", None, "eu-west-3", None]}, params)
found = s3_settings(StoreSpec("metaflow-s3", "s3://b", access=access))
keys = [found.credentials()() for _ in range(2)]
shown = {k: found.client_params[k] for k in ("endpoint_url", "region_name")}
print(json.dumps([shown, found.client_params["config"]["read_timeout"], [key.access_key for key in keys], params]))
"""


def test_a_stores_own_parameters_and_role_go_before_metaflows(tmp_path: Path, moto_server: S3Server) -> None:
    common = {
        "METAFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1", "ENDPOINT": moto_server.url,
        "AWS_ENDPOINT_URL_STS": moto_server.url, "AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    shown, timeout, keys, params = in_metaflow(ROLE, tmp_path, **common)
    assert shown == {"endpoint_url": moto_server.url, "region_name": "eu-west-1"}
    assert timeout == 7
    assert keys == ["own", "own"]
    assert params["config"] == {"read_timeout": 7}, "What the user gave is not changed"
    _, _, keys, _ = in_metaflow(ROLE, tmp_path, ROLE="arn:aws:iam::123456789012:role/training", **common)
    assert all(key.startswith("ASIA") for key in keys), "Not those of a role"
    assert keys[0] != keys[1], "A new session asks for new ones"


def test_settings_of_which_no_client_can_be_made_are_an_error_that_says_whose_they_are(tmp_path: Path) -> None:
    code = """
import json
from async_ckpt.errors import UsageError
from async_ckpt.stores.base import Access, StoreSpec
from async_ckpt.stores.metaflow import s3_settings
try:
    s3_settings(StoreSpec("metaflow-s3", "s3://b/x", access=Access(client_params={"secret": "not-to-be-shown"})))
except UsageError as error:
    print(json.dumps(str(error)))
"""
    said = in_metaflow(code, tmp_path)
    assert "s3://b/x" in said
    assert "secret" in said
    assert "not-to-be-shown" not in said


def test_without_settings_the_endpoint_stays_amazons_choice(tmp_path: Path) -> None:
    params, config, encryption, attempts, key = in_metaflow(SETTINGS, tmp_path)
    assert "endpoint_url" not in params
    assert "verify" not in params
    assert (encryption, attempts, key) == (None, 8, None)
    assert "request_checksum_calculation" not in config


SPEC = """
import json
from async_ckpt.errors import UsageError
from async_ckpt.stores.metaflow import default_spec
try:
    print(json.dumps(default_spec().to_json()))
except UsageError as error:
    print(json.dumps(str(error)))
"""


def test_the_default_datastore_is_the_default_store(tmp_path: Path) -> None:
    local = in_metaflow(SPEC, tmp_path, METAFLOW_DATASTORE_SYSROOT_LOCAL=str(tmp_path))
    assert local == {"kind": "local", "root": f"{tmp_path}/.metaflow", "options": {}}
    s3 = in_metaflow(SPEC, tmp_path, METAFLOW_DEFAULT_DATASTORE="s3", METAFLOW_DATASTORE_SYSROOT_S3="s3://b/p")
    assert s3 == {"kind": "metaflow-s3", "root": "s3://b/p", "options": {}}


def test_a_relative_root_is_made_absolute_and_reading_makes_no_datastore(tmp_path: Path) -> None:
    local = in_metaflow(SPEC, tmp_path, METAFLOW_DATASTORE_SYSROOT_LOCAL="some/where")
    assert local["root"] == f"{tmp_path}/some/where/.metaflow"
    assert "METAFLOW_DATASTORE_SYSROOT_LOCAL" in in_metaflow(SPEC, tmp_path)
    assert not (tmp_path / ".metaflow").exists()


def test_a_datastore_that_cannot_keep_checkpoints_is_refused(tmp_path: Path) -> None:
    assert "local, s3" in in_metaflow(SPEC, tmp_path, METAFLOW_DEFAULT_DATASTORE="gs")
    assert "METAFLOW_DATASTORE_SYSROOT_S3" in in_metaflow(SPEC, tmp_path, METAFLOW_DEFAULT_DATASTORE="s3")

"""The S3 client is made with what the user configured; only what is left open is filled in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.config import Config as BotoConfig
from botocore.exceptions import CredentialRetrievalError

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.stores._s3_boto3 import FetchedCredentials
from async_ckpt.stores._s3_client import ThreadCredentials, make_config, open_client
from async_ckpt.stores._s3_settings import Fetched, is_loopback
from async_ckpt.stores.base import S3Settings

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "eu-north-1"}


def test_the_users_config_counts_and_the_rest_is_ours() -> None:
    merged = make_config(BotoConfig(read_timeout=7, s3={"addressing_style": "path"}), Config(parts_in_flight=20))
    assert (merged.read_timeout, merged.s3) == (7, {"addressing_style": "path"})
    assert merged.max_pool_connections >= 40
    assert merged.request_checksum_calculation == "when_required"
    assert make_config({"request_checksum_calculation": "when_supported"}, Config()).request_checksum_calculation == (
        "when_supported"
    )


def test_client_params_are_not_changed() -> None:
    params: dict[str, Any] = {**KEYS, "config": {"s3": {"addressing_style": "path"}}}
    before = json.dumps(params)

    async def check() -> None:
        async with AsyncExitStack() as stack:
            await open_client(stack, S3Settings(params), Config())

    anyio.run(check)
    assert json.dumps(params) == before


@pytest.mark.parametrize(
    ("url", "unsigned_payload", "given", "signed"),
    [
        ("https://store.example", False, {}, False),
        ("http://127.0.0.1:9000", False, {}, False),
        ("http://[::1]:9000", False, {}, False),
        ("http://store.example", False, {}, None),
        ("http://store.example", True, {}, False),
        ("https://store.example", False, {"payload_signing_enabled": True}, True),
    ],
)
def test_payloads_are_signed_where_nothing_else_guards_them(
    url: str, unsigned_payload: bool, given: dict[str, Any], signed: bool | None
) -> None:
    async def check() -> None:
        async with AsyncExitStack() as stack:
            settings = S3Settings({**KEYS, "endpoint_url": url, "config": {"s3": given}})
            client = (await open_client(stack, settings, Config(unsigned_payload=unsigned_payload))).client
            assert (client.meta.config.s3 or {}).get("payload_signing_enabled") is signed

    anyio.run(check)


def test_a_setting_that_no_client_takes_is_refused_by_name() -> None:
    async def check() -> None:
        async with AsyncExitStack() as stack:
            with pytest.raises(UsageError, match="colour"):
                await open_client(stack, S3Settings({**KEYS, "colour": "red"}), Config())

    anyio.run(check)


def test_loopback_is_this_machine_only() -> None:
    assert is_loopback("http://localhost:1")
    assert is_loopback("http://127.0.0.2")
    assert not is_loopback("http://127.0.0.1.example.com")
    assert not is_loopback("http://10.0.0.1")


#: How both kinds of clients ask for the credentials of a request.
KINDS = {
    "in threads": lambda fetched: FetchedCredentials(fetched).get_frozen_credentials(),
    "aiobotocore": lambda fetched: anyio.run(ThreadCredentials(fetched).get_frozen_credentials),
}


@pytest.mark.parametrize("ask", KINDS.values(), ids=KINDS)
def test_credentials_are_asked_for_once_a_minute_and_again_when_the_store_found_them_expired(
    ask: Callable[[Fetched], Any],
) -> None:
    calls: list[int] = []
    fetched = Fetched(lambda: calls.append(1) or len(calls))
    assert [ask(fetched) for _ in range(3)] == [1, 1, 1]
    fetched.forget()
    assert ask(fetched) == 2


@pytest.mark.parametrize("ask", KINDS.values(), ids=KINDS)
def test_credentials_that_cannot_be_had_do_not_show_why_in_words_that_may_hold_them(
    ask: Callable[[Fetched], Any],
) -> None:
    def fetch() -> Any:
        raise RuntimeError("the process printed hunter2")

    with pytest.raises(CredentialRetrievalError) as caught:
        ask(Fetched(fetch))
    assert "hunter2" not in str(caught.value)


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
key = found.credentials() if found.credentials else None
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


def test_a_datastore_that_cannot_keep_checkpoints_is_refused(tmp_path: Path) -> None:
    assert "local, s3" in in_metaflow(SPEC, tmp_path, METAFLOW_DEFAULT_DATASTORE="gs")
    assert "METAFLOW_DATASTORE_SYSROOT_S3" in in_metaflow(SPEC, tmp_path, METAFLOW_DEFAULT_DATASTORE="s3")

"""Signatures of ours are those that botocore makes."""

from __future__ import annotations

import datetime
from typing import Any
from unittest import mock

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from async_ckpt.stores._s3_sigv4 import EMPTY_SHA256, UNSIGNED, Signer, encode_path, encode_query

NOW = datetime.datetime(2026, 11, 24, 23, 59, 59, tzinfo=datetime.timezone.utc)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
values = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=-_.~ ", min_size=1, max_size=40)


def of_botocore(method: str, url: str, headers: dict[str, str], payload: str, keys: Any) -> str:
    request = AWSRequest(method, url, headers={**headers, "X-Amz-Content-SHA256": payload})
    request.context["client_config"] = Config(s3={"payload_signing_enabled": payload != UNSIGNED})
    with mock.patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        S3SigV4Auth(keys, "s3", "eu-west-3").add_auth(request)
    return str(request.headers["Authorization"])


@given(
    method=st.sampled_from(["GET", "PUT"]),
    name=names,
    query=st.dictionaries(st.sampled_from(["partNumber", "uploadId", "list-type"]), values),
    extra=st.dictionaries(st.sampled_from(["range", "x-amz-checksum-crc32", "content-length"]), st.just("value")),
    token=st.none() | st.just("session-token"),
)
def test_a_signature_is_the_one_botocore_makes(
    method: str, name: str, query: dict[str, str], extra: dict[str, str], token: str | None
) -> None:
    keys = ReadOnlyCredentials("AKIA", "secret", token)
    path, search = "/bucket/" + encode_path(name), encode_query(query)
    headers = {"host": "127.0.0.1:9000", **extra}
    payload = UNSIGNED if method == "PUT" else EMPTY_SHA256
    ours = Signer("eu-west-3", "s3").headers(method, path, search, headers, payload, keys, NOW)
    url = f"http://127.0.0.1:9000{path}" + (f"?{search}" if search else "")
    assert ours["authorization"] == of_botocore(method, url, extra, payload, keys)


def test_the_key_of_a_day_is_made_once_and_never_used_for_another_day_or_secret() -> None:
    signer = Signer("us-east-1", "s3")

    def sign(secret: str, now: datetime.datetime) -> str:
        keys = ReadOnlyCredentials("AKIA", secret, None)
        return signer.headers("GET", "/b/k", "", {"host": "h"}, UNSIGNED, keys, now)["authorization"]

    first = sign("one", NOW)
    assert sign("two", NOW) != first
    assert sign("one", NOW + datetime.timedelta(seconds=1)) != first
    assert sign("one", NOW) == first

"""Signatures are botocore's own, made faster."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from botocore import UNSIGNED, auth
from botocore.auth import HmacV1Auth, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from async_ckpt.errors import UsageError
from async_ckpt.stores.s3.signing import NO_CONTENT, UNSIGNED_PAYLOAD, Headers, Signing

NOW = datetime.datetime(2026, 2, 28, 23, 59, 59, tzinfo=datetime.timezone.utc)
URLS = [
    "https://bucket.s3.eu-west-3.amazonaws.com/a/key",
    "http://127.0.0.1:9000/bucket/odd%20%2B%C3%BC/~key-._",
    "https://h/bucket/k?partNumber=7&uploadId=2~a%2Fb%3D",
    "https://h/bucket?list-type=2&prefix=a%2F",
]


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "get_current_datetime", lambda *_: NOW.replace(tzinfo=None))


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("token", [None, "a-session-token"])
@pytest.mark.parametrize("payload", [UNSIGNED_PAYLOAD, NO_CONTENT])
@pytest.mark.parametrize("url", URLS)
def test_a_signature_is_the_one_that_botocore_makes(url: str, payload: str, token: str | None) -> None:
    credentials = Credentials("key-id", "secret", token)
    fields = {"x-amz-checksum-crc32": "AAAA  AA==", "range": "bytes=0-1"}

    class Theirs(S3SigV4Auth):  # type: ignore[misc]
        def payload(self, request: Any) -> str:
            return payload

    request = AWSRequest(method="PUT", url=url, headers=dict(fields))
    Theirs(credentials, "s3", "eu-west-3").add_auth(request)
    mine = Headers({"host": url.split("/")[2], **fields})
    signing = Signing("s3v4", "eu-west-3")
    for _ in range(2):  # The second time with the day's key.
        again = Headers(mine)
        signing.sign("PUT", url, again, payload, credentials, 0.0)
        assert again["Authorization"] == request.headers["Authorization"]
        assert again.get("X-Amz-Security-Token") == token


def test_the_key_of_a_day_is_not_used_on_the_next_or_with_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    signing, made = Signing("s3v4", "r"), set()
    for day, secret in ((1, "a"), (2, "a"), (2, "b"), (1, "a")):
        monkeypatch.setattr(auth, "get_current_datetime", lambda *_, day=day: datetime.datetime(2026, 1, day))
        headers = Headers({"host": "h"})
        signing.sign("GET", "https://h/b/k", headers, NO_CONTENT, Credentials("id", secret), 0.0)
        made.add(headers["Authorization"])
    assert len(made) == 3


def test_the_stores_clock_is_the_one_that_counts() -> None:
    headers = Headers({"host": "h"})
    Signing("s3v4", "r").sign("GET", "https://h/b/k", headers, NO_CONTENT, Credentials("id", "s"), 7 * 86400.0)
    signed = datetime.datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    ahead = signed - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(days=6, hours=23) < ahead < datetime.timedelta(days=7, hours=1)


@pytest.mark.parametrize(
    ("url", "bucket"), [("https://bucket.host/a%20key", "/bucket"), ("https://host/bucket/a%20key", "")]
)
def test_the_old_version_signs_the_bucket_wherever_it_stands(url: str, bucket: str) -> None:
    credentials = Credentials("key-id", "secret")
    mine = Headers({"host": url.split("/")[2]})
    Signing("s3", "", bucket=bucket).sign("GET", url, mine, NO_CONTENT, credentials, 0.0)
    request = AWSRequest(method="GET", url=url, auth_path="/bucket/a%20key")
    request.headers["Date"] = mine["Date"]
    theirs = HmacV1Auth(credentials)
    theirs._get_date = lambda: mine["Date"]
    theirs.add_auth(request)
    assert mine["Authorization"] == request.headers["Authorization"]


def test_no_signature_is_one_of_the_choices() -> None:
    assert not Signing(UNSIGNED, "").signs


@pytest.mark.parametrize("version", ["s3v4-query", "v4a", "bearer"])
def test_a_kind_of_signature_that_is_not_for_requests_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match=version):
        Signing(version, "r")

"""Where a bucket is: what a Location, a region and an endpoint say, and what they must not be taken for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from async_ckpt.errors import StoreError
from async_ckpt.stores.s3.endpoint import PROBE, Endpoint

AWS4 = "AWS4-HMAC-SHA256 Credential=placeholder/20260101/eu-west-3/s3/aws4_request, SignedHeaders=host, Signature=0"


def endpoint(base: str, bucket: str = "bucket") -> Endpoint:
    return Endpoint(base, bucket, "s3v4", "eu-west-3")


@pytest.mark.parametrize(
    ("url", "base", "host"),
    [
        (f"https://bucket.s3.eu-west-3.amazonaws.com/{PROBE}", "https://bucket.s3.eu-west-3.amazonaws.com", None),
        (f"https://minio.corp:443/bucket/{PROBE}", "https://minio.corp/bucket", "minio.corp"),
        (f"http://Minio.Corp:80/bucket/{PROBE}", "http://minio.corp/bucket", "minio.corp"),
        (f"http://[::1]:9000/bucket/{PROBE}", "http://[::1]:9000/bucket", "[::1]:9000"),
        (f"https://user:pass@h:9000/bucket/{PROBE}?x=1", "https://h:9000/bucket", "h:9000"),
    ],
)
def test_a_place_is_learned_as_botocore_signs_it(url: str, base: str, host: str | None) -> None:
    request = SimpleNamespace(url=url, headers={"Authorization": AWS4})
    found = Endpoint.learn(request, "bucket", "s3v4")
    assert (found.base, found.region, found.service) == (base, "eu-west-3", "s3")
    assert found.host == (host or found.base.removeprefix("https://"))


@pytest.mark.parametrize(
    ("mine", "location", "path", "base"),
    [
        ("https://h/bucket", "https://other/bucket/a/key", "/a/key", "https://other/bucket"),
        ("https://h/s3/bucket", "https://h2/s3/bucket/a/key?x=1", "/a/key?partNumber=1", "https://h2/s3/bucket"),
        ("https://h/bucket", "https://bucket.other/a/key", "/a/key", "https://bucket.other"),
        ("https://bucket.h", "https://h2/bucket?list-type=2", "?list-type=2", "https://h2/bucket"),
        ("https://h/bucket", "s3.eu-west-3.amazonaws.com", "/a/key", "https://s3.eu-west-3.amazonaws.com/bucket"),
        ("https://h/bucket", "bucket.s3.eu-west-3.amazonaws.com", "/k", "https://bucket.s3.eu-west-3.amazonaws.com"),
    ],
)
def test_a_location_keeps_its_path(mine: str, location: str, path: str, base: str) -> None:
    found = endpoint(mine).at(location, path)
    assert found is not None
    assert found.base == base


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("https://portal/login", "/a/key"),
        ("https://portal/login", "?list-type=2"),
        ("ftp://h/bucket/a/key", "/a/key"),
        ("/bucket/a/key", "/a/key"),
        ("", "/a/key"),
    ],
)
def test_what_is_no_address_of_the_object_is_none_of_the_bucket(location: str, path: str) -> None:
    assert endpoint("https://h/bucket").at(location, path) is None


def test_a_host_that_only_begins_like_the_bucket_is_not_taken_for_it() -> None:
    found = endpoint("http://127.0.0.1:9000/127", "127").at("http://127.0.0.1:9001/127/a/key", "/a/key")
    assert found is not None
    assert found.base == "http://127.0.0.1:9001/127"


def test_nobody_is_led_from_tls_to_a_connection_that_everybody_reads() -> None:
    with pytest.raises(StoreError, match="without encryption"):
        endpoint("https://h/bucket").at("http://h/bucket/a/key", "/a/key")

"""The proxy of the tests of faults does what it says, and nothing else. Seen by a client that never tries again."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
from botocore.session import get_session

from harness.s3.proxy import (
    CUT_ANSWER,
    CUT_OFF,
    CUT_REQUEST,
    INTERNAL,
    KINDS,
    LOST,
    PASSED,
    REFUSED,
    RESET,
    SLOW_DOWN,
    TOO_MANY,
    Proxy,
)
from harness.s3.servers import BUCKET, S3Server, rclone_server

__all__ = ["rclone_server"]

DATA = bytes(range(256)) * 4096
KEY = "proxy/object"
NAME = {"Bucket": BUCKET, "Key": KEY}

ANSWERS = {SLOW_DOWN: ("SlowDown", 503), TOO_MANY: ("TooManyRequestsException", 429), INTERNAL: ("InternalError", 500)}
BROKEN = (HTTPClientError, ConnectionError)


@contextlib.contextmanager
def client_of(server: S3Server, url: str) -> Iterator[Any]:
    config = Config(
        signature_version="s3v4",  # of presigned URLs too; the server knows no other
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    made = get_session().create_client("s3", config=config, **{**server.client_params, "endpoint_url": url})
    yield made
    made.close()


@pytest.fixture(scope="module")
def clients(rclone_server: S3Server) -> Iterator[tuple[Proxy, Any, Any]]:
    with (
        Proxy(rclone_server.url) as running,
        client_of(rclone_server, running.url) as through,
        client_of(rclone_server, rclone_server.url) as past,
    ):
        yield running, through, past


@pytest.fixture
def proxy(clients: tuple[Proxy, Any, Any]) -> Iterator[Proxy]:
    """The proxy; after the test it spoils nothing."""
    yield clients[0]
    clients[0].set(latency_s=0, bytes_s=0, share=0, kinds=KINDS, only="")


@pytest.fixture
def through(clients: tuple[Proxy, Any, Any]) -> Any:
    """A client of the proxy."""
    return clients[1]


@pytest.fixture
def past(clients: tuple[Proxy, Any, Any]) -> Any:
    """A client of the server; its object is not there."""
    clients[2].delete_object(**NAME)
    return clients[2]


def is_there(client: Any) -> bool:
    try:
        return bool(client.get_object(**NAME)["Body"].read() == DATA)
    except ClientError:
        return False


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_error_answers_in_place_of_the_server(proxy: Proxy, through: Any, past: Any, kind: str) -> None:
    before = proxy.counts()
    proxy.set(share=1, kinds=(kind,))
    with pytest.raises(ClientError) as caught:
        through.put_object(**NAME, Body=DATA)
    error = caught.value.response
    assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ANSWERS[kind]
    with pytest.raises(ClientError):
        through.head_object(**NAME)
    assert proxy.counts() - before == {kind: 2}
    assert not is_there(past)


@pytest.mark.parametrize(("kind", "stored"), [(RESET, False), (CUT_REQUEST, False), (LOST, True)])
def test_a_put_whose_connection_breaks(proxy: Proxy, through: Any, past: Any, kind: str, stored: bool) -> None:
    before = proxy.counts()
    proxy.set(share=1, kinds=(kind,))
    with pytest.raises(BROKEN):
        through.put_object(**NAME, Body=DATA)
    assert proxy.counts() - before == {kind: 1}
    assert is_there(past) == stored
    proxy.set(share=0)
    through.put_object(**NAME, Body=DATA)
    assert is_there(past)


def test_an_answer_that_is_cut(proxy: Proxy, through: Any, past: Any) -> None:
    past.put_object(**NAME, Body=DATA)
    proxy.set(share=1, kinds=(CUT_ANSWER,))
    answer = through.get_object(**NAME)
    assert answer["ContentLength"] == len(DATA)
    pieces: list[bytes] = []
    with pytest.raises(BotoCoreError):
        pieces.extend(answer["Body"])
    got = b"".join(pieces)
    assert got == DATA[: len(got)]
    assert 0 < len(got) <= len(DATA) // 2


def test_an_answer_in_chunks_that_is_cut(proxy: Proxy, through: Any, many: Callable[[], Any]) -> None:
    assert many()["ResponseMetadata"]["HTTPHeaders"]["transfer-encoding"] == "chunked"
    proxy.set(share=1, kinds=(CUT_ANSWER,))
    with pytest.raises(BotoCoreError):
        many()


def test_only_what_is_meant_fails(proxy: Proxy, through: Any, past: Any) -> None:
    past.put_object(**NAME, Body=DATA)
    proxy.set(share=1, only="PUT ")
    assert is_there(through)
    proxy.set(share=1, only="", kinds=(CUT_REQUEST,))
    assert is_there(through), "a request without a body was cut in its body"


def test_the_share_that_fails_is_drawn_by_the_seed(rclone_server: S3Server) -> None:
    def drawn(seed: int) -> list[int]:
        with Proxy(rclone_server.url, seed=seed, share=0.5, kinds=(SLOW_DOWN,)) as other:
            return [status_of(other.url) for _ in range(40)]

    statuses = drawn(1)
    assert 10 <= statuses.count(503) <= 30
    assert drawn(1) == statuses
    assert drawn(2) != statuses


def status_of(url: str) -> int:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().status


@pytest.fixture
def many(through: Any, past: Any) -> Callable[[], Any]:
    """Lists more objects than fit into one piece of an answer."""
    for number in range(40):
        past.put_object(Bucket=BUCKET, Key=f"many/{number}", Body=b"x")
    return lambda: through.list_objects_v2(Bucket=BUCKET, Prefix="many/")


def test_what_passes_is_what_the_server_says(proxy: Proxy, through: Any, past: Any, many: Callable[[], Any]) -> None:
    before = proxy.counts()
    through.put_object(**NAME, Body=DATA)
    assert through.head_object(**NAME)["ContentLength"] == len(DATA)
    answer = through.get_object(**NAME, Range="bytes=1000-300000")
    assert answer["ContentRange"] == f"bytes 1000-300000/{len(DATA)}"
    assert answer["Body"].read() == DATA[1000:300001]
    for _ in range(2):
        answer = many()
        assert answer["ResponseMetadata"]["HTTPHeaders"]["transfer-encoding"] == "chunked"
        assert len(answer["Contents"]) == 40
    with pytest.raises(ClientError, match="404"):
        through.head_object(Bucket=BUCKET, Key="proxy/nothing")
    through.put_object(**NAME, Body=b"")
    assert through.get_object(**NAME)["Body"].read() == b""
    through.delete_object(**NAME)
    assert proxy.counts() - before == {PASSED: 9}


def test_a_connection_is_kept(proxy: Proxy, through: Any) -> None:
    missing = urlsplit(through.generate_presigned_url("head_object", Params={"Bucket": BUCKET, "Key": "proxy/nothing"}))
    with contextlib.closing(http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as connection:
        sockets = set()
        for method, target, body in (
            ("GET", "/", None),
            ("PUT", "/", b"x" * 100_000),
            ("HEAD", f"{missing.path}?{missing.query}", None),  # its answer gives no length
            ("GET", "/", None),
        ):
            connection.request(method, target, body)
            sockets.add(connection.sock)
            connection.getresponse().read()
        assert len(sockets) == 1


def test_latency_and_throttle_take_their_time(proxy: Proxy, through: Any, past: Any) -> None:
    past.put_object(**NAME, Body=DATA)
    proxy.set(latency_s=0.1)
    started = time.monotonic()
    through.head_object(**NAME)
    assert time.monotonic() - started >= 0.1
    proxy.set(latency_s=0, bytes_s=8 * len(DATA))
    for call in (lambda: is_there(through), lambda: through.put_object(**NAME, Body=DATA)):
        started = time.monotonic()
        assert call()
        assert time.monotonic() - started >= 0.12


def test_an_outage_resets_what_is_open_and_what_begins(proxy: Proxy, through: Any, past: Any) -> None:
    before = proxy.counts()
    through.put_object(**NAME, Body=DATA)
    with proxy.outage():
        for _ in range(2):
            with pytest.raises(BROKEN):
                through.get_object(**NAME)
    assert is_there(through)
    counts = proxy.counts() - before
    assert counts[CUT_OFF] >= 1
    assert counts[REFUSED] >= 2


def test_an_outage_cuts_a_put_in_its_middle_and_leaves_nothing_of_it(proxy: Proxy, through: Any, past: Any) -> None:
    proxy.set(bytes_s=len(DATA) / 60)
    with contextlib.closing(http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as connection:
        url = urlsplit(through.generate_presigned_url("put_object", Params=NAME))
        before = proxy.counts()
        connection.request("PUT", f"{url.path}?{url.query}", DATA[: len(DATA) // 8])
        deadline = time.monotonic() + 30
        while not proxy.counts() - before:
            assert time.monotonic() < deadline
        with proxy.outage(), pytest.raises(OSError, match="reset"):
            connection.getresponse()
    assert not is_there(past)

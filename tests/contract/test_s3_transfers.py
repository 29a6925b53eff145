"""How content gets to S3 and back: past botocore and through it, over TLS, in parts that survive, verified, copied."""

from __future__ import annotations

import base64
import itertools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import IntegrityError, NotFound, StoreError, TransientStoreError
from async_ckpt.stores import throttle as throttling
from async_ckpt.stores.base import Multipart, Stored
from async_ckpt.stores.s3 import S3Settings, copies
from async_ckpt.stores.s3.store import S3Store
from harness.s3.servers import BUCKET, S3Server, moto_server, moto_tls_server, rclone_server
from harness.stores.content import BytesContent, crcs_of, pattern

from .store_suite import LARGE, run
from .test_s3_store import OK, Misbehaving, answer, open_uploads, plain_client

__all__ = ["moto_server", "moto_tls_server", "rclone_server"]

_numbers = itertools.count()


def new_root() -> str:
    return f"s3://{BUCKET}/transfers/{os.getpid()}-{next(_numbers)}"


class TestTls:
    def store(self, server: S3Server, **client_params: Any) -> S3Store:
        return S3Store(new_root(), S3Settings(server.client_params | client_params), Config(store_attempts=1))

    def test_content_travels_over_tls(self, moto_tls_server: tuple[S3Server, str], tmp_path: Path) -> None:
        server, certificate = moto_tls_server
        data, target = pattern(LARGE), tmp_path / "target"

        async def check() -> None:
            store = self.store(server, verify=certificate)
            try:
                crcs = (await store.put_content("a/key", BytesContent(data))).crc32
                assert await store.get_file("a/key", str(target), size=LARGE, crc32=crcs) == LARGE
                assert target.read_bytes() == data
                assert await store.get_bytes("a/key") == data
            finally:
                await store.aclose()

        run(check)

    def test_a_certificate_that_nobody_vouches_for_is_refused_and_says_what_to_set(
        self, moto_tls_server: tuple[S3Server, str]
    ) -> None:
        async def check() -> None:
            store = self.store(moto_tls_server[0])
            try:
                with pytest.raises(StoreError, match="AWS_CA_BUNDLE") as caught:
                    await store.put_bytes("a/key", b"x")
                assert not isinstance(caught.value, TransientStoreError)
            finally:
                await store.aclose()

        run(check)

    def test_a_user_who_asks_for_no_verification_gets_none(self, moto_tls_server: tuple[S3Server, str]) -> None:
        async def check() -> None:
            store = self.store(moto_tls_server[0], verify=False)
            try:
                await store.put_bytes("a/key", b"x")
                assert await store.get_bytes("a/key") == b"x"
            finally:
                await store.aclose()

        run(check)


class Verifying(Misbehaving):
    """A server that checks the CRC-32 a body came with, as Amazon's does and those for tests do not."""

    def __init__(self) -> None:
        super().__init__(OK)
        self.refused = 0

    async def _serve(self, stream: SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        head, _, body = head.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += await stream.receive()
        self.requests.append(head.split(b"\r\n")[0].decode())
        named = [line for line in head.split(b"\r\n") if line.lower().startswith(b"x-amz-checksum-crc32: ")]
        if base64.b64decode(named[0].split(b": ")[1]) == zlib.crc32(body).to_bytes(4, "big"):
            await stream.send(answer("200 OK", fields='ETag: "1"\r\n'))
        else:
            self.refused += 1
            await stream.send(answer("400 Bad Request", b"<Error><Code>BadDigest</Code></Error>"))


class Flipping(BytesContent):
    """Reads another byte than is there, once, when it is sent: as bad memory or a bad cable would have it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0

    def pread(self, count: int, offset: int) -> bytes:
        data = super().pread(count, offset)
        self.reads += offset == 0
        return b"\xff" + data[1:] if offset == 0 and self.reads == 2 else data


def test_what_arrives_otherwise_than_it_was_digested_is_refused_and_sent_again() -> None:
    data = pattern(3_000_000)
    server = Verifying()

    async def check() -> None:
        async with server.store() as store:
            assert (await store.put_content("key", Flipping(data))).crc32 == crcs_of(data)

    run(check)
    assert (server.refused, len(server.requests)) == (1, 2)


def test_a_bucket_in_another_region_is_found_by_a_request_without_a_body_and_kept() -> None:
    wrong = answer(
        "400 Bad Request", b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"
    )
    server = Misbehaving(wrong, answer("404 Not Found"), answer("200 OK", fields='ETag: "1"\r\n'))

    async def check() -> None:
        async with server.store() as store:
            await store.put_content("key", BytesContent(b"content"))
            await store.put_bytes("key", b"content")

    run(check)
    assert [request.split()[0] for request in server.requests] == ["PUT", "HEAD", "PUT", "PUT"]


class Log:
    """A ``PartsLog`` in memory; ``on_sent`` is called after each part."""

    def __init__(self, on_sent: Callable[[int], None] = lambda count: None) -> None:
        self.known: Multipart | None = None
        self.begun = 0
        self._on_sent = on_sent

    def began(self, upload: str, part_bytes: int) -> None:
        self.begun += 1
        self.known = Multipart(upload, part_bytes)

    def sent(self, number: int, part: Stored) -> None:
        assert self.known is not None
        self.known.parts[number] = part
        self._on_sent(len(self.known.parts))


class Counting(BytesContent):
    """Knows how much of it was read."""

    read = 0

    def pread(self, count: int, offset: int) -> bytes:
        data = super().pread(count, offset)
        self.read += len(data)
        return data


class ResumeSuite:
    server: S3Server
    DATA = pattern(5 * CHUNK_BYTES + 12345)

    @pytest.fixture(autouse=True)
    def _root(self) -> None:
        self.root = new_root()

    def make_store(self) -> S3Store:
        return S3Store(self.root, S3Settings(self.server.client_params), Config(parts_in_flight=1, store_attempts=1))

    async def interrupted(self, log: Log) -> None:
        """Begin an upload, and be killed after its third part as far as the log goes."""
        store = self.make_store()
        with anyio.CancelScope() as scope:
            log._on_sent = lambda count: scope.cancel() if count == 3 else None
            await store.put_content("a/key", BytesContent(self.DATA), log=log)
        assert scope.cancelled_caught
        log._on_sent = lambda count: None
        await store.aclose()

    def test_parts_that_are_there_are_not_sent_again(self) -> None:
        async def check() -> None:
            log = Log()
            await self.interrupted(log)
            assert log.known is not None
            missing = sum(
                len(self.DATA[(number - 1) * CHUNK_BYTES : number * CHUNK_BYTES])
                for number in range(1, 7)
                if number not in log.known.parts
            )
            store = self.make_store()
            source, sent = Counting(self.DATA), []
            assert (await store.put_content("a/key", source, sent.append, log)).crc32 == crcs_of(self.DATA)
            # Once to digest it, once to send it.
            assert source.read == 2 * missing
            assert sum(sent) == len(self.DATA)
            assert log.begun == 1
            assert await store.get_bytes("a/key") == self.DATA
            assert not await open_uploads(store)
            await store.aclose()

        run(check)

    def test_an_upload_that_was_aborted_meanwhile_is_begun_anew(self) -> None:
        async def check() -> None:
            log = Log()
            await self.interrupted(log)
            store = self.make_store()
            assert log.known is not None
            plain_client(store).abort_multipart_upload(
                Bucket=store._engine.bucket,
                Key=store._engine.name("a/key"),
                UploadId=log.known.upload.partition(":")[2],
            )
            sent: list[int] = []
            assert (await store.put_content("a/key", BytesContent(self.DATA), sent.append, log)).crc32 == crcs_of(
                self.DATA
            )
            assert sum(sent) == len(self.DATA)
            assert log.begun == 2
            assert await store.get_bytes("a/key") == self.DATA
            assert not await open_uploads(store)
            await store.aclose()

        run(check)

    def test_a_failure_for_good_leaves_no_open_multipart_in_spite_of_a_log(self) -> None:
        class Gone(BytesContent):
            def pread(self, count: int, offset: int) -> bytes:
                if offset >= 3 * CHUNK_BYTES:
                    raise IntegrityError("The captured file is gone", where="somewhere")
                return super().pread(count, offset)

        async def check() -> None:
            store = self.make_store()
            with pytest.raises(IntegrityError):
                await store.put_content("a/key", Gone(self.DATA), log=Log())
            assert not await open_uploads(store)
            await store.aclose()

        run(check)


class TestResumeOnMoto(ResumeSuite):
    @pytest.fixture(autouse=True)
    def _server(self, moto_server: S3Server) -> None:
        self.server = moto_server

    def test_an_upload_whose_completion_was_not_heard_of_is_recognized(self) -> None:
        async def check() -> None:
            log, store = Log(), self.make_store()
            await store.put_content("a/key", BytesContent(self.DATA), log=log)
            source = Counting(self.DATA)
            assert (await store.put_content("a/key", source, log=log)).crc32 == crcs_of(self.DATA)
            assert source.read == 0
            assert log.begun == 1
            await store.aclose()

        run(check)


@pytest.mark.long
class TestResumeOnRclone(ResumeSuite):
    @pytest.fixture(autouse=True)
    def _server(self, rclone_server: S3Server) -> None:
        self.server = rclone_server


class CopySuite:
    server: S3Server

    def make_store(self) -> S3Store:
        return S3Store(new_root(), S3Settings(self.server.client_params), Config(store_attempts=1))

    @pytest.mark.parametrize("limit", [copies.ONE_REQUEST_BYTES, 1 << 20], ids=["one request", "parts"])
    def test_a_copy_is_the_same_content_and_leaves_nothing_open(
        self, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(copies, "ONE_REQUEST_BYTES", limit)
        monkeypatch.setattr(copies, "PART_BYTES", 5 << 20)
        data = pattern(LARGE)

        async def check() -> None:
            store = self.make_store()
            await store.put_content("a/key", BytesContent(data))
            await store.copy("a/key", "b/key", LARGE)
            assert await store.get_bytes("b/key") == data
            with pytest.raises(NotFound):
                await store.copy("a/missing", "b/other", LARGE)
            with pytest.raises(IntegrityError, match="instead of 7"):
                await store.copy("a/key", "b/other", 7)
            assert [entry.key async for entry in store.list("b")] == ["b/key"]
            assert not await open_uploads(store)
            await store.aclose()

        run(check)


class TestCopyOnMoto(CopySuite):
    @pytest.fixture(autouse=True)
    def _server(self, moto_server: S3Server) -> None:
        self.server = moto_server


@pytest.mark.long
class TestCopyOnRclone(CopySuite):
    """It copies no parts: then one request does it."""

    @pytest.fixture(autouse=True)
    def _server(self, rclone_server: S3Server) -> None:
        self.server = rclone_server


def test_uploads_take_no_more_than_the_bandwidth_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the throttle: what it had its requests wait for, not what passed meanwhile."""
    server = Misbehaving(answer("200 OK", fields='ETag: "1"\r\n'))
    waited: list[float] = []

    async def check() -> None:
        async with server.store() as store:
            monkeypatch.setattr(throttling, "time", SimpleNamespace(monotonic=lambda: 1000.0))
            monkeypatch.setattr(throttling, "THROTTLE_BURST_S", 0.0)
            throttle = store._store._engine.throttle  # type: ignore[attr-defined]
            throttle.pace(1e8)

            async def wait(count: int, told: Callable[[float], None] = lambda pause_s: None) -> None:
                waited.append(throttle.reserve(count))

            monkeypatch.setattr(throttle, "wait", wait)
            await store.put_content("key", BytesContent(pattern(10_000_000)))

    run(check)
    # In pieces of a quarter of a MiB, all in one moment of this clock: each waits for those before it.
    sizes = [min(256 << 10, 10_000_000 - at) for at in range(0, 10_000_000, 256 << 10)]
    assert waited == pytest.approx([sum(sizes[:number]) / 1e8 for number in range(len(sizes))])

"""Servers that copy in ways of their own: what is stored is right with each of them, and what can be copied is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.errors import IntegrityError
from async_ckpt.stores.retry import RetryStore
from async_ckpt.stores.s3 import S3Settings, copies
from async_ckpt.stores.s3.store import S3Store
from harness.s3.fault_server import FaultServer, Turn
from harness.s3.faults import instead
from harness.s3.memory_s3 import Answer, MemoryS3, Object, Refusal, Request, document, error
from harness.s3.servers import ACCESS_KEY, BUCKET, SECRET_KEY
from harness.stores.content import BytesContent

from .earlier_suite import Earlier
from .store_suite import run

SIZE = 3 * CHUNK_BYTES + 1000
BEFORE = random.Random(3).randbytes(SIZE)
#: One chunk of four has changed.
AFTER = BEFORE[:CHUNK_BYTES] + b"x" + BEFORE[CHUNK_BYTES + 1 :]
KNOWN = SIZE - CHUNK_BYTES


class IgnoresTags(MemoryS3):
    """As moto does."""

    def _origin(self, request: Request) -> Object:
        del request.headers["x-amz-copy-source-if-match"]  # type: ignore[attr-defined]
        return super()._origin(request)


class IgnoresRanges(MemoryS3):
    """Copies the whole object for every part."""

    def _origin(self, request: Request) -> Object:
        request.headers.pop("x-amz-copy-source-range", None)  # type: ignore[attr-defined]
        return super()._origin(request)


class TakesCopiesForEmptyParts(MemoryS3):
    """As rclone's does; and a part that was sent once cannot be replaced."""

    def _UploadPartCopy(self, request: Request) -> Answer:
        request.body = b""
        return self._UploadPart(request)

    def _UploadPart(self, request: Request) -> Answer:
        if int(request.query["partNumber"]) in self._upload(request).parts:
            raise Refusal(error(501, "NotImplemented", "The part has already been streamed"))
        return super()._UploadPart(request)


class KnowsNoCopies(MemoryS3):
    def _UploadPartCopy(self, request: Request) -> Answer:
        raise Refusal(error(501, "NotImplemented"))

    _CopyObject = _UploadPartCopy


class MayNotRead(MemoryS3):
    """The role may write, and not read."""

    def _UploadPartCopy(self, request: Request) -> Answer:
        raise Refusal(error(403, "AccessDenied"))

    _CopyObject = _GetObject = _HeadObject = _UploadPartCopy


class CannotCompleteCopies(MemoryS3):
    """Has no checksums of copied parts, and wants one of each."""

    copied: set[tuple[str, int]]

    def _UploadPartCopy(self, request: Request) -> Answer:
        self.__dict__.setdefault("copied", set()).add((request.query["uploadId"], int(request.query["partNumber"])))
        return super()._UploadPartCopy(request)

    def _CompleteMultipartUpload(self, request: Request) -> Answer:
        upload = request.query["uploadId"]
        if any(name == upload for name, _ in self.__dict__.get("copied", ())):
            raise Refusal(error(400, "InvalidRequest", "The upload was created using a crc32 checksum"))
        return super()._CompleteMultipartUpload(request)


class CopiesSomethingElse(MemoryS3):
    """And tells so, by its checksum."""

    def _UploadPartCopy(self, request: Request) -> Answer:
        upload, made = self._upload(request), self._object(b"!" * len(self._origin(request).data))
        upload.parts[int(request.query["partNumber"])] = made
        return document("CopyPartResult", f"<ETag>{made.etag}</ETag><ChecksumCRC32>{made.crc32}</ChecksumCRC32>")


class HasNoTags(MemoryS3):
    """Tells no ETag where it makes an object of parts, or of another one (as Ceph, now and then)."""

    def _CompleteMultipartUpload(self, request: Request) -> Answer:
        super()._CompleteMultipartUpload(request)
        return document("CompleteMultipartUploadResult", f"<Key>{request.key}</Key>")

    def _CopyObject(self, request: Request) -> Answer:
        super()._CopyObject(request)
        return document("CopyObjectResult", "")


#: How many bytes are copied with each of them: where one chunk of four has changed, and where none has.
SERVERS: dict[type[MemoryS3], tuple[int, int]] = {
    MemoryS3: (KNOWN, SIZE),
    IgnoresTags: (KNOWN, SIZE),
    IgnoresRanges: (0, SIZE),
    TakesCopiesForEmptyParts: (0, SIZE),
    KnowsNoCopies: (0, 0),
    MayNotRead: (0, 0),
    HasNoTags: (KNOWN, SIZE),
}


def params(url: str) -> dict[str, str]:
    return {
        "endpoint_url": url,
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
        "region_name": "us-east-1",
    }


@pytest.fixture
def serve() -> Iterator[Callable[[MemoryS3], tuple[FaultServer, RetryStore]]]:
    servers: list[FaultServer] = []

    def make(s3: MemoryS3, **settings: float) -> tuple[FaultServer, RetryStore]:
        server = FaultServer(s3)
        servers.append(server)
        config = Config(store_attempts=3, **settings)  # type: ignore[arg-type]
        return server, RetryStore(S3Store(f"s3://{BUCKET}/x", S3Settings(params(server.url)), config), config)

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.__name__)
def test_what_is_stored_is_right_whatever_a_server_makes_of_copies(
    serve: Callable[..., tuple[FaultServer, RetryStore]], kind: type[MemoryS3]
) -> None:
    s3, (part, whole) = kind(), SERVERS[kind]
    _, store = serve(s3)

    async def check() -> None:
        earlier = Earlier()
        earlier.add("one", SIZE, await store.put_content("one", BytesContent(BEFORE)))
        for number in range(2):
            earlier.bytes_copied = 0
            await store.put_content(f"changed-{number}", BytesContent(AFTER), earlier=earlier)
            assert s3.objects[f"x/changed-{number}"].data == AFTER
            assert earlier.bytes_copied == part
        earlier.bytes_copied = 0
        stored = await store.put_content("same", BytesContent(BEFORE), earlier=earlier)
        assert s3.objects["x/same"].data == BEFORE
        assert earlier.bytes_copied == whole
        earlier.add("same", SIZE, stored)
        assert earlier.of("same") is not None, "it is a source itself"
        assert not s3.uploads, "uploads that are left open cost money"
        await store.aclose()

    run(check)


@pytest.mark.parametrize("kind", [CannotCompleteCopies, CopiesSomethingElse], ids=lambda kind: kind.__name__)
def test_a_server_whose_copies_are_of_no_use_gets_the_bytes(
    serve: Callable[..., tuple[FaultServer, RetryStore]], kind: type[MemoryS3]
) -> None:
    s3 = kind()
    _, store = serve(s3)

    async def check() -> None:
        earlier = Earlier()
        earlier.add("one", SIZE, await store.put_content("one", BytesContent(BEFORE)))
        for number in range(2):
            await store.put_content(f"changed-{number}", BytesContent(AFTER), earlier=earlier)
            assert s3.objects[f"x/changed-{number}"].data == AFTER
        assert not s3.uploads
        await store.aclose()

    run(check)


def test_copies_that_are_never_answered_are_sent_after_a_while(
    serve: Callable[..., tuple[FaultServer, RetryStore]],
) -> None:
    s3 = MemoryS3()
    server, store = serve(s3, answer_timeout_s=1.0, complete_timeout_s=1.0)

    async def check() -> None:
        earlier = Earlier()
        earlier.add("one", SIZE, await store.put_content("one", BytesContent(BEFORE)))
        await store.put_content("two", BytesContent(AFTER), earlier=earlier)  # It is known to copy ranges now.
        assert earlier.bytes_copied == KNOWN

        def hang(turn: object) -> bool:
            if turn.request.operation != "UploadPartCopy":  # type: ignore[attr-defined]
                return False
            turn.connection.hang()  # type: ignore[attr-defined]
            return True

        server.inject = hang
        began = time.monotonic()
        await store.put_content("three", BytesContent(AFTER), earlier=earlier)
        assert s3.objects["x/three"].data == AFTER
        assert time.monotonic() - began < 30
        await store.aclose()

    run(check)


@pytest.mark.parametrize("status", [409, 503])
@pytest.mark.parametrize("data", [BEFORE, AFTER], ids=["whole", "ranges"])
def test_a_store_that_ignores_tags_and_refuses_the_test_for_another_reason_is_not_trusted(
    serve: Callable[..., tuple[FaultServer, RetryStore]], data: bytes, status: int
) -> None:
    s3 = IgnoresTags()
    server, store = serve(s3)
    refused: list[str] = []

    def refuse(turn: Turn) -> bool:
        if set(turn.request.headers.get("x-amz-copy-source-if-match", "").strip('"')) != {"0"}:
            return False
        instead(error(status, "Whatever"))(turn)
        refused.append(turn.request.operation)
        return True

    async def check() -> None:
        server.inject = refuse
        earlier = Earlier()
        first = await store.put_content("one", BytesContent(BEFORE))
        earlier.add("one", SIZE, first)
        await store.put_content("two", BytesContent(data), earlier=earlier)
        s3.put("x/one", bytes(SIZE))  # Somebody else's, of the same size.
        earlier.add("one", SIZE, first)
        await store.put_content("three", BytesContent(data), earlier=earlier)
        assert s3.objects["x/three"].data == data
        assert refused
        await store.aclose()

    run(check)


def test_a_large_source_that_is_replaced_while_it_is_copied_in_parts_is_no_copy(
    serve: Callable[..., tuple[FaultServer, RetryStore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(copies, "PART_BYTES", CHUNK_BYTES)
    s3 = IgnoresTags()
    server, store = serve(s3)

    def replace(turn: Turn) -> bool:
        if turn.request.operation == "UploadPartCopy":
            s3.put("x/one", bytes(SIZE))
        return False

    async def check() -> None:
        first = await store.put_content("one", BytesContent(BEFORE))
        server.inject = replace
        with pytest.raises(IntegrityError, match="was replaced since it was stored"):
            await store.copy("one", "two", SIZE, first.etag)
        assert not s3.uploads
        await store.aclose()

    run(check)

"""Copies that go wrong: whatever is answered to them, what is stored is right, and nothing is left open."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from unittest import mock

import pytest

from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.stores import retry
from async_ckpt.stores.retry import RetryStore
from async_ckpt.stores.s3 import S3Settings
from async_ckpt.stores.s3.store import S3Store
from harness.s3.fault_answers import cut_document, no_tag
from harness.s3.fault_server import FaultServer, Turn
from harness.s3.faults import Inject, changed, done_but, drop, half_body, hang, html, instead, lost, reset, unanswered
from harness.s3.memory_s3 import Answer, MemoryS3, document, error
from harness.s3.servers import BUCKET, S3Server
from harness.stores.content import BytesContent

from .earlier_suite import Earlier
from .store_suite import run

SIZE = CHUNK_BYTES + 100_000
BEFORE = random.Random(5).randbytes(SIZE)
#: Of two chunks the second has changed: the first one is a copied part.
AFTER = BEFORE[:-1] + bytes([BEFORE[-1] ^ 1])

LIMITS = dict.fromkeys(("connect_timeout_s", "answer_timeout_s", "stall_timeout_s", "complete_timeout_s"), 1.0)


_TAG = f"<ETag>&quot;{'0123456789abcdef' * 2}&quot;</ETag>"

#: What happens to a request for a copy.
FAULTS: dict[str, Inject] = {
    "silence": unanswered(hang), "closed": unanswered(drop), "reset": unanswered(reset),
    "its answer is lost": lost(drop), "its answer never comes": lost(hang), "its answer stops": half_body(hang),
    "its answer is cut off": half_body(drop), "half a document": changed(cut_document), "no ETag": changed(no_tag),
    "done, and 500": done_but(error(500, "InternalError")), "done, and 403": done_but(error(403, "AccessDenied")),
    "500": instead(error(500, "InternalError")), "503": instead(error(503, "SlowDown")),
    "501": instead(error(501, "NotImplemented")), "403": instead(error(403, "AccessDenied")),
    "404": instead(error(404, "NoSuchKey")), "412": instead(error(412, "PreconditionFailed")),
    "400": instead(error(400, "InvalidRequest")), "an error with 200": instead(error(200, "InternalError")),
    "a page to log in": instead(html(200)), "nothing with 200": instead(Answer(200, reason="OK")),
    "nothing with 204": instead(Answer(204, reason="No Content")),
    "done, it says, and it is not": instead(document("CopyPartResult", _TAG)),
    "done, it says in words for whole objects, and it is not": instead(document("CopyObjectResult", _TAG)),
}  # fmt: skip

#: Which of the requests for a copy are met: the one that tries whether copies work at all, those after it, or all.
MET: dict[str, Callable[[int], bool]] = {
    "the first": lambda number: number == 1,
    "all but the first": lambda number: number > 1,
    "all": lambda number: True,
}

CASES = [(fault, met) for fault in FAULTS for met in MET]
#: Tried always: each fault once, and each way in which requests are met.
FEW = {(fault, list(MET)[number % len(MET)]) for number, fault in enumerate(FAULTS)}


@pytest.mark.parametrize(
    ("fault", "met"), [pytest.param(*case, marks=[] if case in FEW else pytest.mark.long) for case in CASES]
)
def test_what_could_not_be_copied_is_sent(fault: str, met: str) -> None:
    s3 = MemoryS3()
    server, config = FaultServer(s3), Config(store_attempts=2, **LIMITS)  # type: ignore[arg-type]
    params = dict(S3Server(server.url, 0).client_params)
    store, asked = RetryStore(S3Store(f"s3://{BUCKET}/x", S3Settings(params), config), config), 0

    def inject(turn: Turn) -> bool:
        nonlocal asked
        if turn.request.operation not in ("UploadPartCopy", "CopyObject"):
            return False
        asked += 1
        if not MET[met](asked):
            return False
        FAULTS[fault](turn)
        return True

    async def check() -> None:
        nonlocal asked
        try:
            earlier = Earlier()
            first = await store.put_content("one", BytesContent(BEFORE))
            server.inject = inject
            for data in (AFTER, BEFORE):  # One of which a chunk is known, and one that is known as a whole.
                asked = 0
                for number in range(2):
                    sent: list[int] = []
                    earlier.bytes_copied = 0
                    earlier.add("one", SIZE, first)
                    stored = await store.put_content(f"new-{number}", BytesContent(data), sent.append, earlier=earlier)
                    assert s3.objects[f"x/new-{number}"].data == data
                    assert sum(sent) + earlier.bytes_copied == SIZE
                    assert (stored.digests == first.digests) == (data == BEFORE)
                assert asked, "nobody asked for a copy"
            assert not s3.uploads, "uploads that are left open cost money"
        finally:
            await store.aclose()

    try:
        began = time.monotonic()
        with mock.patch.object(retry, "STORE_FIRST_PAUSE_S", 0.01):
            run(check)
        assert time.monotonic() - began < 60
    finally:
        server.close()
    for failure in server.failures:
        raise failure

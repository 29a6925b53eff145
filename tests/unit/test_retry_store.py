"""RetryStore tries again what may pass, and only that; and says what it did when it was not enough."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from async_ckpt.config import STORE_FIRST_PAUSE_S, STORE_LONGEST_PAUSE_S, Config
from async_ckpt.errors import NotFound, StoreError, TransientStoreError
from async_ckpt.stores import retry
from async_ckpt.stores.base import ListedObject
from async_ckpt.stores.retry import RetryStore
from async_ckpt.system.backoff import Backoff
from harness.stores.content import BytesContent, crcs_of
from harness.stores.memory import FaultyStore

BUSY = TransientStoreError("Cannot write x: SlowDown", where="x", hint="Wait")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(retry.anyio, "sleep", sleep)
    return made


def test_what_may_pass_is_tried_until_it_does(pauses: list[float]) -> None:
    faulty = FaultyStore([BUSY] * 3)

    async def check() -> None:
        store = RetryStore(faulty, Config(store_attempts=4))
        await store.put_bytes("a/b", b"x")
        assert await store.get_bytes("a/b") == b"x"

    anyio.run(check)
    assert faulty.calls == ["put_bytes"] * 4 + ["get_tagged"]
    assert len(pauses) == 3


@pytest.mark.parametrize("error", [StoreError("no"), NotFound("none")])
def test_what_will_not_pass_is_raised_at_once(pauses: list[float], error: StoreError) -> None:
    faulty = FaultyStore([error])

    async def check() -> None:
        with pytest.raises(StoreError) as caught:
            await RetryStore(faulty, Config()).put_bytes("a", b"")
        assert caught.value is error

    anyio.run(check)
    assert (faulty.calls, pauses) == (["put_bytes"], [])


@pytest.mark.usefixtures("pauses")
def test_the_last_error_says_how_often_how_long_and_why() -> None:
    faulty = FaultyStore([BUSY] * 9)

    async def check() -> None:
        with pytest.raises(
            TransientStoreError, match=r"SlowDown \(gave up after 5 attempts over \d+\.\d s\)"
        ) as caught:
            await RetryStore(faulty, Config(store_attempts=5)).size("a")
        assert (caught.value.where, caught.value.hint) == ("x", "Wait")

    anyio.run(check)
    assert len(faulty.calls) == 5


def test_no_attempt_begins_after_the_deadline(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = FaultyStore([BUSY] * 99)
    monkeypatch.setattr(retry.time, "monotonic", lambda: 1000.0 + sum(pauses))
    monkeypatch.setattr(retry, "Backoff", lambda *_, **__: Backoff(0, 10.0, 10.0))

    async def check() -> None:
        with pytest.raises(TransientStoreError, match=r"gave up after 6 attempts over 50\.0 s"):
            await RetryStore(faulty, Config(store_attempts=99, store_deadline_s=55)).size("a")

    anyio.run(check)


def test_what_was_given_up_below_is_not_tried_again_above(pauses: list[float]) -> None:
    faulty = FaultyStore([BUSY] * 9)
    config = Config(store_attempts=2)

    async def check() -> None:
        with pytest.raises(TransientStoreError):
            await RetryStore(RetryStore(faulty, config), config).size("a")

    anyio.run(check)
    assert len(faulty.calls) == 2
    assert len(pauses) == 1


def test_pauses_grow_to_a_cap_and_are_spread_out(pauses: list[float]) -> None:
    async def check() -> None:
        for _ in range(200):
            with pytest.raises(TransientStoreError):
                await RetryStore(FaultyStore([BUSY] * 99), Config(store_attempts=11, store_deadline_s=1e6)).size("a")

    anyio.run(check)
    for attempt in range(10):
        made = pauses[attempt::10]
        bound = min(STORE_LONGEST_PAUSE_S, STORE_FIRST_PAUSE_S * 2.0**attempt)
        assert 0 <= min(made) < bound / 4
        assert bound * 3 / 4 < max(made) <= bound


@pytest.mark.usefixtures("pauses")
def test_bytes_of_a_failed_attempt_are_taken_back(tmp_path: Path) -> None:
    faulty = FaultyStore([BUSY, BUSY])
    target = tmp_path / "target"

    async def check() -> None:
        store = RetryStore(faulty, Config())
        sent: list[int] = []
        assert (await store.put_content("a/b", BytesContent(b"1234567"), sent.append)).crc32 == crcs_of(b"1234567")
        assert sum(sent) == 7
        assert min(sent) < 0
        faulty.faults = [BUSY]
        got: list[int] = []
        assert await store.get_file("a/b", str(target), progress=got.append) == 7
        assert sum(got) == 7
        faulty.faults = [StoreError("no")]
        lost: list[int] = []
        with pytest.raises(StoreError):
            await store.put_content("a/b", BytesContent(b"1234567"), lost.append)
        assert sum(lost) == 0

    anyio.run(check)


@pytest.mark.usefixtures("pauses")
def test_a_listing_that_has_not_begun_is_tried_again() -> None:
    faulty = FaultyStore([BUSY])
    faulty.objects.update({"a/1": b"", "a/2": b""})

    async def check() -> None:
        store = RetryStore(faulty, Config())
        assert [entry async for entry in store.list("a")] == [ListedObject("a/1", 0), ListedObject("a/2", 0)]

    anyio.run(check)
    assert faulty.calls == ["list", "list"]


@pytest.mark.usefixtures("pauses")
def test_a_listing_that_breaks_off_is_an_error_and_no_entry_comes_twice() -> None:
    faulty = FaultyStore([BUSY], list_first=1)
    faulty.objects.update({"a/1": b"", "a/2": b""})

    async def check() -> None:
        found: list[ListedObject] = []

        async def collect() -> None:
            async for entry in RetryStore(faulty, Config()).list("a"):
                found.append(entry)  # noqa: PERF401 - what came before the error counts

        with pytest.raises(TransientStoreError, match="in the middle of a listing"):
            await collect()
        assert found == [ListedObject("a/1", 0)]

    anyio.run(check)
    assert faulty.calls == ["list"]


def test_a_wait_between_attempts_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "Backoff", lambda *_, **__: Backoff(0, 3600.0, 3600.0))

    async def check() -> None:
        with anyio.move_on_after(0.05) as scope:
            await RetryStore(FaultyStore([BUSY]), Config(store_deadline_s=1e6)).put_bytes("a", b"")
        assert scope.cancelled_caught

    anyio.run(check)


def test_it_stands_for_the_store_it_wraps() -> None:
    faulty = FaultyStore()

    async def check() -> None:
        store = RetryStore(faulty, Config())
        assert (store.root, store.url("a")) == (faulty.root, faulty.url("a"))
        assert store.capabilities is faulty.capabilities
        await store.aclose()
        assert faulty.closed == 1

    anyio.run(check)

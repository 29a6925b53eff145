"""When the card is written, and what of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_ckpt.card.page import data_of
from async_ckpt.card.place import card_place
from async_ckpt.card.rows import Log, rows_of
from async_ckpt.card.writer import CardWriter
from async_ckpt.config import CARD_PAGE_S, CARD_UPDATE_ROWS, Config
from async_ckpt.errors import StoreError
from async_ckpt.layout import TaskInfo
from async_ckpt.stores import open_store
from async_ckpt.stores.base import Store, StoreSpec
from harness.common.clock import StillClock

TASK = TaskInfo("Flow", "7", "train", "3", 0, "a" * 12, "b" * 12)
PLACE = card_place(TASK)

pytestmark = pytest.mark.anyio


class Card:
    """A writer, and what somebody who looks finds."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.log, self.clock, self.store, self._folder = Log(str(folder)), StillClock(), store, folder
        self.begin()

    def begin(self) -> None:
        """Another uploader."""
        self.writer = CardWriter(self.store, TASK, str(self._folder), self.clock)

    def save(self, *ids: str, attempt: int = 0, **fields: Any) -> None:
        self.log.append(
            {"id": identity, "attempt": attempt, "name": "model", "saved_at": 1.0, "state": "ADMITTED", **fields}
            for identity in ids
        )

    async def write(self, state: str = "running", attempt: int = 0) -> None:
        self.clock.now += 5
        await self.writer.write({"at": self.clock.time(), "state": state, "attempt": attempt, "now": {}, "errors": []})

    async def page(self) -> dict[str, Any]:
        return data_of((await self.store.get_bytes(PLACE.page)).decode())

    async def update(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.store.get_bytes(PLACE.update))
        return found


@pytest.fixture
async def card(tmp_path: Path) -> AsyncIterator[Card]:
    folder = tmp_path / "spool"
    folder.mkdir()
    store = open_store(StoreSpec("local", str(tmp_path / "cards")), Config())
    yield Card(folder, store)
    await store.aclose()


def ids(data: dict[str, Any]) -> list[str]:
    return [row["id"] for row in rows_of(data)]


async def test_the_page_holds_all_and_the_update_what_has_changed_since(card: Card) -> None:
    card.save("a")
    await card.write()
    assert ids(await card.page()) == ["a"]
    token = (await card.update())["reload_token"]
    assert ids((await card.update())["data"]) == []
    card.save("b")
    await card.write()
    assert ids(await card.page()) == ["a"], "it is not written so often"
    assert (await card.update())["reload_token"] == token
    assert ids((await card.update())["data"]) == ["b"]
    card.clock.now += CARD_PAGE_S
    await card.write()
    assert ids(await card.page()) == ["a", "b"]
    assert ids((await card.update())["data"]) == ["b"], "viewers may have the page as it was first"


async def test_after_many_changes_viewers_load_the_page_again(card: Card) -> None:
    card.save("a")
    await card.write()
    token = (await card.update())["reload_token"]
    many = [str(number) for number in range(CARD_UPDATE_ROWS + 1)]
    card.save(*many)
    await card.write()
    assert ids(await card.page()) == ["a", *many]
    assert (await card.update())["reload_token"] != token
    assert ids((await card.update())["data"]) == []


@pytest.mark.parametrize("state", ["ended", "failed", "lost"])
async def test_at_the_end_all_is_on_the_page_at_once(card: Card, state: str) -> None:
    card.save("a")
    await card.write()
    card.save("b")
    await card.write(state)
    assert ids(await card.page()) == ["a", "b"]
    assert (await card.page())["state"] == state
    assert (await card.update())["reload_token"] == "final"
    card.save("b", state="COMMITTED")  # The agent goes on where its task is gone.
    await card.write(state)
    assert rows_of(await card.page())[1]["state"] == "COMMITTED"


async def test_an_attempt_that_follows_goes_on_with_the_card(card: Card) -> None:
    card.save("a")
    await card.write("failed")
    card.save("b", attempt=1)
    await card.write(attempt=1)
    assert (await card.page())["state"] == "running"
    assert ids(await card.page()) == ["a", "b"]
    assert (await card.update())["reload_token"] != "final"


async def test_another_uploader_goes_on_with_the_card(card: Card) -> None:
    card.save("a")
    await card.write()
    card.begin()
    card.save("b")
    await card.write()
    assert ids(await card.page()) == ["a", "b"]


async def test_an_attempt_on_another_machine_keeps_what_earlier_ones_had(card: Card, tmp_path: Path) -> None:
    card.save("0.a")
    await card.write()
    card.save("0.b")
    card.save("0.a", state="COMMITTED")
    await card.write()  # Of this only the update tells.
    other = tmp_path / "other"
    other.mkdir()
    there = Card(other, card.store)
    there.save("1.a", attempt=1)
    await there.write(attempt=1)
    assert [(row["id"], row["state"]) for row in rows_of(await there.page())] == [
        ("1.a", "ADMITTED"), ("0.a", "COMMITTED"), ("0.b", "ADMITTED"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "found", [b"", b"<html></html>", b"\xff\xfe", b'<script type="application/json" id="data">[}</script>']
)
async def test_what_is_no_card_of_ours_is_written_over(card: Card, found: bytes) -> None:
    await card.store.put_bytes(PLACE.page, found)
    card.save("a", attempt=1)
    await card.write(attempt=1)
    assert ids(await card.page()) == ["a"]


class _Refuses:
    """In place of a store's method."""

    async def __call__(self, key: str, data: bytes) -> None:
        raise StoreError("Access denied", where=key)


async def test_a_card_that_cannot_be_written_is_said_and_tried_again(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.save("a")
    with monkeypatch.context() as patch:
        patch.setattr(card.store, "put_bytes", _Refuses())
        await card.write()
    assert card.writer.notice.startswith("The card cannot be written: Access denied")
    await card.write()
    assert ids(await card.page()) == ["a"]


async def test_of_writes_that_wait_for_a_slow_store_only_the_last_is_made(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, gate, real = 0, anyio.Event(), card.store.put_bytes

    async def slow(key: str, data: bytes) -> None:
        nonlocal count
        count += 1
        await gate.wait()
        await real(key, data)

    monkeypatch.setattr(card.store, "put_bytes", slow)
    async with anyio.create_task_group() as group:
        for number in range(3):
            card.save(str(number))
            group.start_soon(card.write)
            await anyio.wait_all_tasks_blocked()
        assert count == 1
        gate.set()
    assert count == 3, "the page and its update at first, and the last update"
    assert ids(await card.page()) == ["0"]
    assert len(ids((await card.update())["data"])) == 2
    assert (await card.update())["created_on"] == card.clock.time()

"""What a task's rules remove from the store, and what stays all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.config import RETAIN_MOST, Config
from async_ckpt.errors import UsageError
from async_ckpt.manifest import dump
from async_ckpt.retention.apply import Retention
from async_ckpt.retention.rules import Best, Rules, rules_of
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Store
from tests.unit.test_retention_delete import CONFIG, TASK, Refuses, check, save

pytestmark = pytest.mark.anyio


async def apply(store: Store, rules: Rules, *needed: dict[str, Any]) -> list[int]:
    """What is left."""
    retention = Retention(store, TASK, rules, CONFIG)
    keys = {key for key in await retention.candidates() if key not in [one["key"] for one in needed]}
    assert set(await retention.remove(keys)) == keys
    return await check(store)


async def test_the_rules_and_nothing_else_decide(store: Store) -> None:
    for number in range(6):
        await save(store, number)
    assert await apply(store, Rules(last=2, every=3)) == [0, 3, 4, 5]
    assert await apply(store, Rules(last=2, every=3)) == [0, 3, 4, 5]


async def test_what_a_retry_would_load_stays_though_no_rule_keeps_it(store: Store) -> None:
    await save(store, 1)
    await save(store, 2, latest=False)
    await save(store, 3, latest=False)
    assert await apply(store, Rules(last=1)) == [1, 3]


async def test_what_latest_names_stays_though_a_newer_one_is_committed(store: Store) -> None:
    for number in range(4):
        await save(store, number)
    reference = (await catalog.list_references(store, TASK.task_folder, CONFIG))[-1]
    await store.put_bytes(f"{TASK.scope_folder}/{layout.LATEST}", dump(reference))
    assert await apply(store, Rules(last=1)) == [0, 3]


async def test_what_somebody_needs_stays(store: Store) -> None:
    references = [await save(store, number) for number in range(4)]
    assert await apply(store, Rules(last=1), references[1]) == [1, 3]


async def test_checkpoints_of_others_stay(store: Store) -> None:
    reference = await save(store, 0)
    await save(store, 1)
    theirs = {name: value for name, value in reference.items() if name != "manifest"}
    parts = layout.parse_key(reference["key"])
    for key in (parts.metadata_key, parts.task_metadata_key(TASK.pathspec)):
        await store.put_bytes(key, dump(theirs))
    assert await apply(store, Rules(last=1)) == [0, 1]


async def test_a_number_that_came_later_counts(store: Store) -> None:
    for number in range(4):
        await save(store, number)
    retention = Retention(store, TASK, Rules(best=Best("loss", "min", 1)), CONFIG)
    assert await retention.candidates() == []
    assert "no checkpoint has the number 'loss'" in retention.notice
    for reference in await catalog.list_references(store, TASK.task_folder, CONFIG):
        reference["metadata"] = {"loss": float(reference["version_id"] % 3)}
        await store.put_bytes(layout.parse_key(reference["key"]).task_metadata_key(TASK.pathspec), dump(reference))
    # Of two that are equal the newer one is the best.
    assert [layout.parse_key(key).version for key in await retention.candidates()] == [0, 1, 2]
    assert retention.notice == ""


async def test_many_are_removed_some_at_a_time(store: Store) -> None:
    for number in range(RETAIN_MOST + 5):
        await save(store, number, files=1)
    retention = Retention(store, TASK, Rules(last=1), CONFIG)
    found = await retention.candidates()
    assert len(found) == RETAIN_MOST
    await retention.remove(found)
    assert len(await retention.candidates()) == 4


async def test_what_cannot_be_removed_is_said_once_and_stays_listed(store: Store) -> None:
    for number in range(3):
        await save(store, number)
    retention = Retention(Refuses(store), TASK, Rules(last=1), CONFIG)
    assert await retention.remove(await retention.candidates()) == []
    assert "cannot be removed: Access denied" in retention.notice
    assert await check(store) == [0, 1, 2]


async def test_a_removal_that_was_begun_by_another_process_is_ended(store: Store) -> None:
    references = [await save(store, number) for number in range(3)]
    await store.delete(layout.parse_key(references[0]["key"]).task_metadata_key(TASK.pathspec))
    await store.put_bytes(
        layout.deleting_key(layout.parse_key(references[0]["key"])), dump({"reference": references[0]})
    )
    assert await apply(store, Rules(last=5)) == [1, 2]


def test_rules_come_of_the_settings() -> None:
    assert not rules_of(CONFIG)
    assert rules_of(replace(Config(), keep_last=2, keep_best="acc max 3", keep_every=5)) == Rules(
        2, Best("acc", "max", 3), 5
    )
    with pytest.raises(UsageError, match="keep_best"):
        rules_of(replace(Config(), keep_best="acc"))


async def test_what_somebody_needs_does_not_hide_what_may_go(store: Store) -> None:
    needed = {(await save(store, number))["key"] for number in range(3)}
    others = [(await save(store, number))["key"] for number in range(3, 6)][:2]
    retention = Retention(store, TASK, Rules(last=1), CONFIG)
    first = await retention.candidates(most=3)
    assert (set(first), retention.has_more) == (needed, True)
    assert (await retention.candidates(most=3), retention.has_more) == (others, False)
    assert await retention.candidates(most=3) == first, "it begins anew"

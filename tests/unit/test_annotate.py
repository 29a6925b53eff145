"""What is added to the metadata of a checkpoint that is in the store."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from async_ckpt import layout
from async_ckpt.errors import NotFound, UsageError
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Store
from async_ckpt.upload.annotate import annotate
from tests.unit.test_retention_delete import CONFIG, TASK, save

MOST = CONFIG.metadata_bytes

pytestmark = pytest.mark.anyio


async def everywhere(store: Store, version: int) -> list[Any]:
    """The metadata of a checkpoint in each object that has it."""
    found = []
    for folder in (TASK.task_folder, TASK.scope_folder):
        listed = await catalog.list_references(store, folder, CONFIG)
        found += [one["metadata"] for one in listed if one["version_id"] == version]
        latest = await catalog.read_reference(store, folder, layout.LATEST)
        if latest is not None and latest["version_id"] == version:
            found.append(latest["metadata"])
    return found


async def test_it_stands_wherever_the_metadata_is_read(store: Store) -> None:
    old, new = await save(store, 0), await save(store, 1)
    assert (await annotate(store, new["key"], new["pathspec"], {"loss": 0.5}, MOST)) == {"loss": 0.5}
    await annotate(store, old["key"], old["pathspec"], {"loss": 0.7}, MOST)
    await annotate(store, new["key"], new["pathspec"], {"acc": 0.9, "loss": 0.4}, MOST)
    assert await everywhere(store, 1) == [{"loss": 0.4, "acc": 0.9}] * 4
    assert await everywhere(store, 0) == [{"loss": 0.7}] * 2


async def test_of_many_who_add_at_once_none_loses_anything(store: Store) -> None:
    if not store.capabilities.conditional_put:
        pytest.skip("the last one counts here")
    reference = await save(store, 0)
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(annotate, store, reference["key"], reference["pathspec"], {str(number): number}, MOST)
    assert await everywhere(store, 0) == [{str(number): number for number in range(5)}] * 4


async def test_what_is_not_there_cannot_be_added_to(store: Store) -> None:
    reference = await save(store, 0)
    key = reference["key"].replace(".0.model.0", ".0.model.7")
    with pytest.raises(NotFound):
        await annotate(store, key, reference["pathspec"], {"loss": 1}, MOST)


async def test_metadata_does_not_grow_without_end(store: Store) -> None:
    reference = await save(store, 0)
    await annotate(store, reference["key"], reference["pathspec"], {"note": "x" * 900}, 1000)
    with pytest.raises(UsageError, match="and 1000 are the most"):
        await annotate(store, reference["key"], reference["pathspec"], {"more": "x" * 900}, 1000)
    assert await everywhere(store, 0) == [{"note": "x" * 900}] * 4

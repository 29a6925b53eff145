"""What was never committed is found when it is old, and nothing else; what is committed meanwhile stays."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.errors import StoreError
from async_ckpt.manifest import dump
from async_ckpt.retention import garbage
from async_ckpt.stores.base import ListedObject, OpenUpload, Store, Wrapper
from tests.unit.test_retention_delete import CONFIG, TASK, check, keys, save

pytestmark = pytest.mark.anyio
DAY_S = 86400.0


async def find(store: Store, **options: Any) -> list[garbage.Garbage]:
    return await garbage.find(store, None, **{"older_than_s": 7 * DAY_S, "now": time.time() + 8 * DAY_S, **options})


async def uncommit(store: Store, reference: dict[str, Any], *, scope: bool = True, task: bool = True) -> str:
    parts = layout.parse_key(reference["key"])
    for key, is_meant in ((parts.metadata_key, scope), (parts.task_metadata_key(TASK.pathspec), task)):
        if is_meant:
            await store.delete(key)
    for folder in (TASK.task_folder, TASK.scope_folder):
        await store.delete(f"{folder}/{layout.LATEST}")
    return parts.key


@pytest.mark.parametrize("tar", [False, True], ids=["files", "tar"])
async def test_what_was_uploaded_and_never_committed_goes_when_it_is_old(store: Store, tar: bool) -> None:
    key = await uncommit(store, await save(store, 1, tar=tar))
    await save(store, 2, tar=tar)
    await save(store, 3, tar=tar)
    assert await find(store, now=time.time() + 6 * DAY_S) == []
    assert await find(store, needed=[key]) == []
    (found,) = await find(store)
    stem = layout.parse_key(key).stem
    sizes = {entry.key: entry.size async for entry in store.list(layout.ROOT) if stem in entry.key}
    assert len(sizes) == (2 if tar else 4)
    assert (found.kind, found.where, found.size) == (garbage.UPLOAD, key, sum(sizes.values()))
    assert found.age_s == pytest.approx(8 * DAY_S, abs=600)
    assert await garbage.remove(store, [found], CONFIG) == [found]
    assert not [each for each in await keys(store) if stem in each]
    assert await check(store) == [2, 3]
    assert await find(store) == []


async def test_one_file_that_is_young_makes_the_whole_young(store: Store) -> None:
    key = await uncommit(store, await save(store, 1))
    old = time.time() - 30 * DAY_S
    for entry in [entry async for entry in store.list(layout.ROOT)][1:]:
        os.utime(Path(store.root) / entry.key, (old, old))
    assert await find(store, now=time.time()) == []
    for entry in [entry async for entry in store.list(layout.ROOT)]:
        os.utime(Path(store.root) / entry.key, (old, old))
    assert [one.where for one in await find(store, now=time.time())] == [key]


@pytest.mark.parametrize(("scope", "task"), [(True, False), (False, True)])
async def test_what_is_listed_anywhere_is_no_garbage(store: Store, scope: bool, task: bool) -> None:
    await uncommit(store, await save(store, 1), scope=scope, task=task)
    assert await find(store) == []


async def test_checkpoints_of_another_flow_are_looked_at_only_where_no_flow_is_named(store: Store) -> None:
    key = await uncommit(store, await save(store, 1))
    assert await garbage.find(store, "Other", older_than_s=0, now=time.time() + 9) == []
    assert [one.where for one in await garbage.find(store, "Flow", older_than_s=0, now=time.time() + 9)] == [key]


async def test_things_of_others_in_the_same_folders_stay(store: Store) -> None:
    await store.put_bytes(f"{layout.ROOT}/artifacts/notes.txt", b"mine")
    await store.put_bytes(f"{layout.ROOT}/artifacts/Flow/step/readme", b"mine")
    assert await find(store) == []


async def test_what_ranks_said_of_a_checkpoint_that_never_came_goes(store: Store) -> None:
    reference = await save(store, 1)
    folder = layout.shards_folder(reference)
    for rank in range(2):
        await store.put_bytes(f"{folder}/{rank}", dump({"reference": reference}))
    assert await find(store) == []
    await uncommit(store, reference)
    assert [(one.kind, one.where) for one in await find(store)] == [
        (garbage.SHARDS, folder), (garbage.UPLOAD, reference["key"])
    ]  # fmt: skip
    await garbage.remove(store, await find(store), CONFIG)
    assert await keys(store) == set()


async def test_a_removal_that_was_not_ended_is_ended(store: Store) -> None:
    references = [await save(store, number) for number in range(2)]
    parts = layout.parse_key(references[0]["key"])
    await store.put_bytes(layout.deleting_key(parts), dump({"reference": references[0]}))
    await store.delete(parts.metadata_key)
    await store.delete(parts.task_metadata_key(TASK.pathspec))
    found = await find(store)
    assert [one.kind for one in found] == [garbage.REMOVAL]
    await garbage.remove(store, found, CONFIG)
    assert await check(store) == [1]
    assert not [key for key in await keys(store) if parts.stem in key]


async def test_what_was_committed_since_it_was_found_stays(store: Store) -> None:
    reference = await save(store, 1)
    await uncommit(store, reference)
    found = await find(store)
    await save(store, 1)
    assert await garbage.remove(store, found, CONFIG) == []
    assert await check(store) == [1]


class Commits(Wrapper):
    """A store in which a checkpoint is committed when its first file is removed."""

    def __init__(self, store: Store, reference: dict[str, Any]) -> None:
        super().__init__(store)
        self._reference = reference

    async def delete(self, key: str) -> None:
        if key.endswith("deep/0"):
            parts = layout.parse_key(self._reference["key"])
            for name in (parts.metadata_key, parts.task_metadata_key(TASK.pathspec)):
                await self.put_bytes(name, dump(self._reference))
        await super().delete(key)


async def test_what_is_committed_while_it_is_removed_is_not_listed_afterwards(store: Store) -> None:
    reference = await save(store, 1)
    await uncommit(store, reference)
    await garbage.remove(Commits(store, reference), await find(store), CONFIG)
    assert await check(store) == []
    assert await keys(store) == set()


class Uploads(Wrapper):
    """A store with multipart uploads that are open."""

    def __init__(self, store: Store, *uploads: OpenUpload) -> None:
        super().__init__(store)
        self._uploads, self.aborted = uploads, list[tuple[str, str]]()

    async def open_uploads(self, prefix: str) -> AsyncIterator[OpenUpload]:
        for upload in self._uploads:
            yield upload

    async def abort(self, key: str, upload: str) -> None:
        self.aborted.append((key, upload))


async def test_open_multiparts_go_when_they_are_old(store: Store) -> None:
    now, folder = time.time(), f"{layout.ROOT}/artifacts/Flow/train/{TASK.scope}/{TASK.identifier}/h.0.model"
    uploads = [OpenUpload(f"{folder}.{number}/file", f"id-{number}", now - number * DAY_S) for number in (1, 8, 9)]
    there = Uploads(store, *uploads)
    found = await find(there, now=now, needed=[f"{folder}.9"])
    assert [(one.where, one.upload) for one in found] == [(f"{folder}.8/file", "id-8")]
    await garbage.remove(there, found, CONFIG)
    assert there.aborted == [(f"{folder}.8/file", "id-8")]


class Undated(Wrapper):
    """A store that does not say when an object was written."""

    async def list(self, prefix: str, beginning: str = "") -> AsyncIterator[ListedObject]:
        async for entry in super().list(prefix, beginning):
            yield ListedObject(entry.key, entry.size)


async def test_where_the_store_does_not_say_how_old_something_is_nothing_is_garbage(store: Store) -> None:
    await uncommit(store, await save(store, 1))
    assert await find(Undated(store)) == []
    with pytest.raises(StoreError, match="does not say when"):
        await garbage.store_time(Undated(store))


async def test_the_stores_own_clock_is_asked(store: Store) -> None:
    assert await garbage.store_time(store) == pytest.approx(time.time(), abs=600)
    assert await keys(store) == set()

"""Whenever a removal is interrupted, what is listed can be loaded, and the removal can be ended."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import NotFound, StoreError
from async_ckpt.manifest import FileEntry, Manifest, dump
from async_ckpt.retention.delete import delete, finish
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Progress, Store, Wrapper, no_progress

T = TypeVar("T")
TASK = layout.TaskInfo("Flow", "7", "train", "3", 0, "a" * 12, "b" * 12)
CONFIG = Config(local_fsync=False)

pytestmark = pytest.mark.anyio


class Mortal(Wrapper):
    """A store whose user is killed after so many changes."""

    def __init__(self, store: Store, left: int) -> None:
        super().__init__(store)
        self.left, self._dead = left, anyio.Event()

    async def while_it_lives(self, call: Callable[[], Awaitable[None]]) -> bool:
        """Whether a call came to its end."""
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await call()
                group.cancel_scope.cancel()

            group.start_soon(run)
            await self._dead.wait()
            group.cancel_scope.cancel()
        return not self._dead.is_set()

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        if operation in ("put_bytes", "put_if", "delete"):
            if not self.left:
                self._dead.set()
                await anyio.sleep_forever()
            self.left -= 1
        return await call(progress)


async def save(store: Store, version: int, *, files: int = 3, tar: bool = False, latest: bool = True) -> dict[str, Any]:
    """Commit a checkpoint as an uploader does."""
    reference = layout.reference(
        TASK, name="model", version=version, url=store.root, size=10 * files, metadata={},
        storage_format="tar" if tar else "files", latest=latest,
    )  # fmt: skip
    parts = layout.parse_key(reference["key"])
    names = [f"deep/{number}" for number in range(files)]
    for key in [parts.key] if tar else [f"{parts.key}/{name}" for name in names]:
        await store.put_bytes(key, b"x" * 10)
    manifest = Manifest([FileEntry(name, 10, 0o644) for name in names])
    await store.put_bytes(parts.manifest_key, dump(manifest.to_json()))
    for key in (parts.metadata_key, parts.task_metadata_key(TASK.pathspec)):
        await store.put_bytes(key, dump(reference))
    if latest:
        for folder in (TASK.task_folder, TASK.scope_folder):
            await store.put_bytes(f"{folder}/{layout.LATEST}", dump(reference))
    return reference


async def check(store: Store) -> list[int]:
    """See that whatever is found can be loaded. Returns the versions that are listed."""
    found = {}
    for folder in (TASK.task_folder, TASK.scope_folder):
        listed = await catalog.list_references(store, folder, CONFIG)
        latest = await catalog.read_reference(store, folder, layout.LATEST)
        for one in [*listed, *([latest] if latest is not None else [])]:
            parts = layout.parse_key(one["key"])
            manifest = Manifest.from_json(await catalog.read_json(store, parts.manifest_key), where="")
            for entry in manifest.files:
                await store.size(parts.key if one["storage_format"] == "tar" else f"{parts.key}/{entry.path}")
        found[folder] = sorted(one["version_id"] for one in listed)
        loadable = [one for one in listed if layout.is_latest(one)]
        assert (latest is None) == (not loadable)
    assert set(found[TASK.scope_folder]) <= set(found[TASK.task_folder])
    return found[TASK.task_folder]


async def keys(store: Store) -> set[str]:
    return {entry.key async for entry in store.list(layout.ROOT)}


@pytest.mark.parametrize("tar", [False, True], ids=["files", "tar"])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_removal_that_is_killed_anywhere_leaves_nothing_that_is_listed_and_lacks_something(
    store: Store, which: int, tar: bool, tmp_path: Path
) -> None:
    for after in range(40):
        references = [await save(store, number, tar=tar) for number in range(3)]
        mortal = Mortal(store, after)
        ended = await mortal.while_it_lives(functools.partial(delete, mortal, references[which], CONFIG))
        if not ended:
            listed = set(await check(store))
            assert listed in ({0, 1, 2}, {0, 1, 2} - {which})
            await finish(store, layout.deleting_folder("Flow", "train"), CONFIG)
            if which in listed:  # It is taken back.
                assert set(await check(store)) == {0, 1, 2}
                assert not [key for key in await keys(store) if key.startswith(layout.deleting_folder("Flow"))]
                continue
        rest = {0, 1, 2} - {which}
        assert await check(store) == sorted(rest)
        stem = layout.parse_key(references[which]["key"]).stem
        assert not [key for key in await keys(store) if stem in key or key.startswith(layout.deleting_folder("Flow"))]
        with pytest.raises(NotFound):
            await catalog.find(store, references[which])
        if ended:
            return
    pytest.fail("it never came to its end")


async def test_the_last_one_of_all_can_be_removed(store: Store) -> None:
    await delete(store, await save(store, 0), CONFIG)
    assert await check(store) == []
    assert await keys(store) == set()


async def test_latest_moves_on_to_what_a_retry_may_load(store: Store) -> None:
    references = [await save(store, 0), await save(store, 1), await save(store, 2)]
    await save(store, 3, latest=False)
    await delete(store, references[2], CONFIG)
    latest = await catalog.read_reference(store, TASK.task_folder, layout.LATEST)
    assert latest is not None
    assert latest["version_id"] == 1


class Refuses(Wrapper):
    """A store that lets nothing be removed."""

    async def _around(
        self, operation: str, call: Callable[[Progress], Awaitable[T]], progress: Progress = no_progress
    ) -> T:
        if operation == "delete":
            raise StoreError("Access denied", where="here")
        return await call(progress)


async def test_without_the_right_to_remove_all_stays_listed(store: Store) -> None:
    references = [await save(store, number) for number in range(2)]
    with pytest.raises(StoreError, match="Access denied"):
        await delete(Refuses(store), references[0], CONFIG)
    assert await check(store) == [0, 1]


async def test_notes_of_others_are_not_followed(store: Store) -> None:
    reference = await save(store, 0)
    note = layout.deleting_key(layout.parse_key(reference["key"]))
    await store.put_bytes(note.replace("model", "other"), dump({"reference": reference}))
    await store.put_bytes(note.replace("model", "broken"), b"{")
    await store.put_bytes(note.replace("model", "list"), b"[]")
    assert await finish(store, layout.deleting_folder("Flow"), CONFIG) == []
    assert await check(store) == [0]

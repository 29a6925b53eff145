"""Processes that remove checkpoints and garbage, and are killed at any moment; and what a reader finds then."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.manifest import FileEntry, Manifest, dump
from async_ckpt.retention import garbage
from async_ckpt.retention.apply import Retention
from async_ckpt.retention.delete import delete
from async_ckpt.retention.rules import Rules
from async_ckpt.stores import catalog
from async_ckpt.stores.base import Store

CONFIG = Config(local_fsync=False, files_in_flight=4)
TASK = layout.TaskInfo("Flow", "1", "train", "1", 0, "a" * 12, "b" * 12)
_FILES = 20
#: A process that does not come to its end in this time hangs, in seconds.
_LIMIT_S = 120.0


@dataclass
class Found:
    """What has come of it.

    Parameters
    ----------
    kills, ended : int
        How many processes were killed, and how many came to their end before that.
    removed : int
        Checkpoints that are gone.
    wrong : list of str
        Whatever was listed and could not be loaded, or was left behind in the end.
    """

    kills: int = 0
    ended: int = 0
    removed: int = 0
    by: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def save(store: Store, version: int, *, commit: bool = True) -> None:
    """A checkpoint; or what is left of one that was never committed."""
    reference = layout.reference(
        TASK, name="model", version=version, url=store.root, size=10 * _FILES, metadata={}, storage_format="files",
        latest=True,
    )  # fmt: skip
    parts = layout.parse_key(reference["key"])
    for number in range(_FILES):
        await store.put_bytes(f"{parts.key}/{number}", b"x" * 10)
    manifest = Manifest([FileEntry(str(number), 10, 0o644) for number in range(_FILES)])
    await store.put_bytes(parts.manifest_key, dump(manifest.to_json()))
    names = [parts.metadata_key, parts.task_metadata_key(TASK.pathspec)]
    names += [f"{folder}/{layout.LATEST}" for folder in (TASK.task_folder, TASK.scope_folder)]
    for name in names if commit else ():
        await store.put_bytes(name, dump(reference))


async def look(store: Store) -> tuple[set[str], list[str]]:
    """Keys of what is listed, and what of it cannot be loaded."""
    listed, wrong = set(), []
    for folder in (TASK.task_folder, TASK.scope_folder):
        latest = await catalog.read_reference(store, folder, layout.LATEST)
        found = await catalog.list_references(store, folder, CONFIG)
        for one in [*found, *([latest] if latest is not None else [])]:
            listed.add(one["key"])
            parts = layout.parse_key(one["key"])
            try:
                manifest = Manifest.from_json(await catalog.read_json(store, parts.manifest_key), where="")
                for entry in manifest.files:
                    await store.size(f"{parts.key}/{entry.path}")
            except CheckpointError as error:
                wrong.append(f"{folder} lists {one['key']}: {error}")
    return listed, wrong


async def remove_by_hand(store: Store, draw: random.Random) -> None:
    listed = await catalog.list_references(store, TASK.task_folder, CONFIG)
    for reference in draw.sample(listed, min(3, len(listed))):
        await delete(store, reference, CONFIG)


async def remove_by_rules(store: Store, draw: random.Random) -> None:
    retention = Retention(store, TASK, Rules(last=2), CONFIG)
    await retention.remove(await retention.candidates())


async def collect(store: Store, draw: random.Random) -> None:
    found = await garbage.find(store, "Flow", older_than_s=0.0, now=time.time() + 60)
    await garbage.remove(store, found, CONFIG)


HOW = {"delete": remove_by_hand, "rules": remove_by_rules, "gc": collect}


def kill_removers(opened: Callable[[], Store], kills: int, seed: int) -> Found:
    """Let processes remove things until so many of them were killed, and look after each.

    Parameters
    ----------
    opened : callable
        Opens the store, in whatever process.
    """
    draw, found, version = random.Random(seed), Found(), 0
    takes_s: dict[str, float] = {}
    while found.kills < kills and not found.wrong:
        version = anyio.run(_fill, opened, version)
        how = draw.choice(list(HOW))
        # The first of each kind comes to its end, so that the others are killed at any moment of theirs.
        limit_s = draw.uniform(0, takes_s[how]) if how in takes_s else _LIMIT_S
        took_s = _wait(_start(opened, how, draw.randrange(1 << 30)), limit_s)
        if took_s is None:
            found.kills += 1
        else:
            takes_s[how] = max(took_s, takes_s.get(how, 0.0))
            found.ended += 1
        found.by[how] += 1
        listed, found.wrong = anyio.run(_looked, opened)
        found.removed = version - len(listed)
    found.wrong += anyio.run(_left_over, opened)
    return found


def _start(opened: Callable[[], Store], how: str, seed: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        anyio.run(_remove, opened, how, seed)
        status = 0
    finally:
        os._exit(status)


def _wait(pid: int, seconds: float) -> float | None:
    """Kill a child after so many seconds. Returns how long it took if it ended before; None: it was killed."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return time.monotonic() - began
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else time.monotonic() - began


async def _fill(opened: Callable[[], Store], version: int) -> int:
    store = opened()
    try:
        listed = await catalog.list_names(store, TASK.task_folder)
        for number in range(version, version + max(6 - len(listed), 0)):
            await save(store, number)
        version += max(6 - len(listed), 0)
        await save(store, 1_000_000 + version, commit=False)
        return version
    finally:
        await store.aclose()


async def _remove(opened: Callable[[], Store], how: str, seed: int) -> None:
    store = opened()
    try:
        await HOW[how](store, random.Random(seed))
    finally:
        await store.aclose()


async def _looked(opened: Callable[[], Store]) -> tuple[set[str], list[str]]:
    store = opened()
    try:
        return await look(store)
    finally:
        await store.aclose()


async def _left_over(opened: Callable[[], Store]) -> list[str]:
    """Collect the garbage to its end: then there is nothing but what is listed."""
    store = opened()
    try:
        await collect(store, random.Random(0))
        listed, wrong = await look(store)
        stems = {layout.parse_key(key).stem for key in listed}
        for folder in ("artifacts", "manifests", "deleting"):
            async for entry in store.list(f"{layout.ROOT}/{folder}"):
                if not any(stem in entry.key for stem in stems):
                    wrong.append(f"left behind: {entry.key}")
        return wrong
    finally:
        await store.aclose()

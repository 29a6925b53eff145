"""What the store knows: reading, listing and finding the metadata of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from .. import layout
from ..config import Config
from ..errors import IntegrityError, NotFound, UsageError
from ..layout import newest
from ..manifest import load
from ..system.concurrency import for_each
from .base import Store, TooLong


async def read_json(store: Store, key: str) -> Any:
    """A stored JSON object.

    Raises
    ------
    NotFound, IntegrityError
        There is none; or it is not JSON.
    """
    return load(await store.get_bytes(key), where=key)


async def read_fields(store: Store, key: str) -> dict[str, Any]:
    """The fields of a stored JSON object; none where it is missing or makes no sense."""
    try:
        found = await read_json(store, key)
    except (NotFound, IntegrityError):
        return {}
    return found if isinstance(found, dict) else {}


async def read_reference(store: Store, folder: str, name: str) -> dict[str, Any] | None:
    """One metadata object; None where it is missing (a listing may be stale) or is not a checkpoint's."""
    return (await read_tagged(store, folder, name))[0]


async def read_tagged(store: Store, folder: str, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """The same, and what ``Store.put_if`` wants to replace it."""
    key = f"{folder}/{name}"
    tag = None
    try:
        content, tag = await store.get_tagged(key)
        data = load(content, where=key)
    except (NotFound, IntegrityError) as error:
        return None, error.tag if isinstance(error, TooLong) else tag
    return (data if layout.is_reference(data) else None), tag


async def list_references(
    store: Store, folder: str, config: Config, *, name: str | None = None, attempt: int | None = None
) -> list[dict[str, Any]]:
    """All committed checkpoints whose metadata lies in ``folder``, newest first; of one name or attempt if given.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    listed = await _list_names(store, folder)
    wanted = [file for (of, _), named, file in listed if name in (None, named) and attempt in (None, of)]
    return newest.newest_first(await _read_all(store, [(folder, file) for file in wanted], config))


async def list_below(
    store: Store, flow: str, run: str | None, step: str | None, config: Config, *, name: str | None = None,
    attempt: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """All committed checkpoints of a flow, of one of its runs, or of a step in one run or in all, newest first.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    above = f"{layout.metadata_of_flow(flow)}{f'/{run}' if run else ''}{f'/{step}' if run and step else ''}"
    wanted: list[tuple[str, str]] = []
    async for entry in store.list(above):
        folder, _, file = entry.key.rpartition("/")
        parts = layout.metadata_name_parts(folder, file)
        if parts is None or name not in (None, parts[1]) or attempt not in (None, parts[0]):
            continue
        if not step or folder.split("/")[-2] == step:
            wanted.append((folder, file))
    return newest.newest_first(await _read_all(store, wanted, config))


async def _list_names(store: Store, folder: str) -> list[tuple[tuple[int, int], str, str]]:
    """What the names of metadata objects in a folder say: (attempt, version), the checkpoint's name, and the object's
    name in the folder.
    """
    found = []
    async for entry in store.list(folder):
        file = entry.key[len(folder) + 1 :]
        if parts := layout.metadata_name_parts(folder, file):
            found.append(((parts[0], parts[2]), parts[1], file))
    return found


async def list_names(store: Store, folder: str) -> set[str]:
    """Names of the metadata objects of checkpoints in a folder.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    return {file for _, _, file in await _list_names(store, folder)}


async def _read_all(store: Store, wanted: Iterable[tuple[str, str]], config: Config) -> list[dict[str, Any]]:
    """Metadata, by folder and name; what is missing by now, or is not a checkpoint's, is left out."""
    contents = await store.get_each([f"{folder}/{name}" for folder, name in wanted], config.files_in_flight)
    found = []
    for key, content in contents.items():
        with contextlib.suppress(IntegrityError):
            data = load(content, where=key)
            if layout.is_reference(data):
                found.append(data)
    return found


async def newest_of_task(store: Store, task: layout.TaskInfo, config: Config) -> dict[str, Any] | None:
    """The newest checkpoint of a task, up to this attempt, that was saved with ``latest=True``.

    ``latest`` may be behind, where a writer died between a commit and it. What was about to be committed tells
    (``layout`` says why); the folder is listed only where that does not help, as for checkpoints of other clients.
    """
    folder = task.task_folder
    hint: dict[str, Any] | None = None
    begun: list[list[str]] = []

    async def ask(key: str | None) -> None:
        nonlocal hint
        if key is None:
            hint = await read_reference(store, folder, layout.LATEST)
        elif (keys := await read_begun(store, key)) is not None:
            begun.append(keys)

    await for_each([None, *await _begun_until(store, task)], config.files_in_flight, ask)
    known = layout.order(hint) if hint else (-1, -1)
    newer = [part for keys in begun for part in map(layout.parse_key, keys) if part.order > known]
    if begun and not newer:
        return hint
    last = max((part.attempt for part in newer), default=-1)
    names = [part.task_metadata_key(task.pathspec)[len(folder) + 1 :] for part in newer if part.attempt == last]
    found = await _read_all(store, [(folder, name) for name in names], config)
    if found:
        return max(found, key=layout.order)
    return await _newest_listed(store, folder, known) or hint


async def _begun_until(store: Store, task: layout.TaskInfo) -> list[str]:
    """Keys of what this attempt and earlier ones, each of which may have begun more than once, were about to commit."""
    prefix = layout.begun_folder(task.pathspec)
    found = [(layout.begun_attempt(entry.key[len(prefix) + 1 :]), entry.key) async for entry in store.list(prefix)]
    return [key for attempt, key in found if attempt is not None and attempt <= task.attempt]


async def newest_of_step(store: Store, folder: str, config: Config) -> dict[str, Any] | None:
    """The newest checkpoint of a step in a scope, of all runs, by time: ``latest``, or where it is missing or makes no
    sense, the newest of those listed that was saved with ``latest=True``.
    """
    hint = await read_reference(store, folder, layout.LATEST)
    if hint is not None:
        return hint
    return next(filter(layout.is_latest, await list_references(store, folder, config)), None)


async def read_begun(store: Store, key: str) -> list[str] | None:
    """Keys of what an attempt was last about to commit; None where it did not say, or cannot be understood."""
    try:
        keys = (await read_fields(store, key))["keys"]
        for item in keys:
            layout.parse_key(item)
        return list(keys)
    except (UsageError, KeyError, TypeError):
        return None


async def _newest_listed(store: Store, folder: str, known: tuple[int, int]) -> dict[str, Any] | None:
    """The newest that is newer than ``known``: names in the listing tell, and few are read."""
    for order, _, file in sorted(await _list_names(store, folder), reverse=True):
        if order <= known:
            break
        data = await read_reference(store, folder, file)
        if data is not None and layout.is_latest(data):
            return data
    return None


async def find(store: Store, reference: Mapping[str, Any] | str) -> dict[str, Any]:
    """The stored metadata of a reference, a plain dict or a key.

    Raises
    ------
    UsageError
        It is none of the three.
    NotFound
        There is no such checkpoint.
    """
    key = reference if isinstance(reference, str) else reference.get("key") if isinstance(reference, Mapping) else None
    if not isinstance(key, str):
        raise UsageError(
            f"{reference!r} is no reference to a checkpoint",
            hint="Pass what save() returned, an entry of list(), or a key",
        )
    parts = layout.parse_key(key)
    data = await read_reference(store, *parts.metadata_key.rsplit("/", 1))
    if data is None and isinstance(reference, Mapping) and layout.is_reference(reference):
        if "manifest" in reference:
            # What failed may lie there with all its files, and be torn: only a commit says that it is good.
            commit = parts.task_metadata_key(reference["pathspec"])
            data = await read_reference(store, *commit.rsplit("/", 1))
        else:
            data = dict(reference)  # The peer's: its metadata may be gone while its data is there; loading will tell.
    if data is None or data["key"] != key:
        raise NotFound(
            "There is no such checkpoint in the store", where=store.url(key),
            hint="It was never committed, or was removed; list() shows what there is. What is in an artifact store is "
            "found by its whole reference, as list() gives it, and not by its key",
        )  # fmt: skip
    return data

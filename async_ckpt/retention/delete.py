"""Removes checkpoints from a store, so that none is ever listed that cannot be loaded.

First it is written down that a checkpoint is being removed (an object of its own in ``layout``'s ``deleting`` folder).
Then nothing leads to it any more: ``latest`` moves on, its metadata goes. Then its files go, its manifest, and at last
the note. Whoever dies in between leaves a note, and ``finish`` goes on from there; what is still listed it leaves
alone, as somebody may have come to need it since. Each step may be repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import anyio

from .. import layout
from ..config import MOVE_LATEST_PAUSE_S, Config
from ..errors import IntegrityError, NotFound, TransientStoreError, UsageError
from ..manifest import Manifest, dump
from ..stores.base import Store
from ..stores.catalog import list_references, read_json, read_reference, read_tagged
from ..system.backoff import Backoff
from ..system.concurrency import for_each

#: How often ``latest`` is moved anew after others came first.
_MOVES = 8


async def delete(store: Store, reference: Mapping[str, Any], config: Config) -> None:
    """Remove one checkpoint.

    Parameters
    ----------
    reference : mapping
        Its stored metadata.

    Raises
    ------
    StoreError
        The store refuses, or is out of reach: what is left of the checkpoint is not listed any more, or it is whole.
    """
    parts = layout.parse_key(reference["key"])
    note = layout.deleting_key(parts)
    await store.put_bytes(note, dump({"reference": dict(reference)}))
    folders = (layout.metadata_folder(reference["pathspec"]), parts.scope_folder)
    for folder in folders:
        await _leave_latest(store, folder, parts.key, config)
    await store.delete(parts.metadata_key)
    await store.delete(parts.task_metadata_key(reference["pathspec"]))
    for folder in folders:  # Whoever removed another one meanwhile may have moved `latest` here, before this was gone.
        await _leave_latest(store, folder, parts.key, config)
    keys = {f"{parts.key}/{path}" for path in await _paths(store, parts)}
    # What an upload that was given up has left there as well.
    keys |= {entry.key async for entry in store.list(parts.key)}
    await for_each(sorted(keys), config.files_in_flight, store.delete)
    await store.delete(parts.key)  # Of a tar.
    await store.delete(parts.manifest_key)
    await store.delete(note)


async def _paths(store: Store, parts: layout.KeyParts) -> list[str]:
    with contextlib.suppress(NotFound, IntegrityError, ValueError, KeyError, TypeError):
        manifest = Manifest.from_json(await read_json(store, parts.manifest_key), where=parts.manifest_key)
        return [entry.path for entry in manifest.files]
    return []


async def _leave_latest(store: Store, folder: str, key: str, config: Config) -> None:
    """Move ``latest`` on, if it names this checkpoint, or one that is not there any more: to the newest other one, or
    away where there is none.
    """
    pauses = Backoff(0, MOVE_LATEST_PAUSE_S, float("inf"), jitter=True)
    for _ in range(_MOVES):
        current, tag = await read_tagged(store, folder, layout.LATEST)
        if current is None or (current["key"] != key and await _is_listed(store, folder, current)):
            return
        others = [one for one in await list_references(store, folder, config) if one["key"] != key]
        other = next((one for one in others if layout.is_latest(one)), None)
        if other is None:
            await store.delete(f"{folder}/{layout.LATEST}")
        elif not await store.put_if(f"{folder}/{layout.LATEST}", dump(other), tag):
            await anyio.sleep(pauses.failed(anyio.current_time()))
        # What it names now may have been removed since it was listed: look again.
    raise TransientStoreError("Others move the latest checkpoint all the time", where=store.url(folder))


async def _is_listed(store: Store, folder: str, reference: Mapping[str, Any]) -> bool:
    parts = layout.parse_key(reference["key"])
    own = parts.metadata_key if folder == parts.scope_folder else parts.task_metadata_key(reference["pathspec"])
    return await read_reference(store, *own.rsplit("/", 1)) is not None


async def finish(store: Store, prefix: str, config: Config) -> list[str]:
    """Go on with all removals that were begun and not ended, or take them back. Returns the keys of what is removed.

    Parameters
    ----------
    prefix : str
        Below which folder of notes (``layout.deleting_folder``).
    """
    found = []
    notes = [entry.key async for entry in store.list(prefix)]
    for note in notes:
        with contextlib.suppress(NotFound, IntegrityError, UsageError):
            data = await read_json(store, note)
            reference: Any = data.get("reference") if isinstance(data, dict) else None
            if not layout.is_reference(reference) or layout.deleting_key(layout.parse_key(reference["key"])) != note:
                continue
            if await _is_listed(store, layout.metadata_folder(reference["pathspec"]), reference):
                await store.delete(note)
            else:
                await delete(store, reference, config)
                found.append(str(reference["key"]))
    return found

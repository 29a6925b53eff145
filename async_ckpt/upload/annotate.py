"""Adds to the metadata of a checkpoint that is in the store: what an evaluation found, say.

The metadata stands in several objects (``layout``): those of the task and of the step, and ``latest`` where that is the
checkpoint. Each is written anew where it is still what was read, so that of two who add at once none loses anything, as
far as the store keeps its word about that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from .. import layout
from ..config import MOVE_LATEST_PAUSE_S
from ..errors import NotFound, TransientStoreError, UsageError
from ..manifest import dump
from ..stores.base import Store
from ..stores.catalog import read_tagged
from ..system.backoff import Backoff

#: How often an object is written anew after others came first.
_TIMES = 8


async def annotate(
    store: Store, key: str, pathspec: str, metadata: Mapping[str, Any], most_bytes: int
) -> dict[str, Any]:
    """Add to the metadata of one checkpoint; what has a name that is there already is replaced.

    Parameters
    ----------
    key, pathspec : str
        Of the checkpoint.
    metadata : mapping
        Plain JSON values.
    most_bytes : int
        All metadata of a checkpoint may have so many bytes of JSON.

    Returns
    -------
    dict
        The metadata (what ``save(metadata=…)`` was given, and what was added) as it is stored now.

    Raises
    ------
    UsageError
        It would be too large.
    NotFound
        There is no such checkpoint.
    StoreError
        The store refuses, or is out of reach.
    """
    parts = layout.parse_key(key)
    task_folder, _, task_name = parts.task_metadata_key(pathspec).rpartition("/")
    scope_folder, _, scope_name = parts.metadata_key.rpartition("/")
    # What lists a task's checkpoints reads its folder, so that goes first; `latest` is a copy.
    found = await _add(store, task_folder, task_name, key, metadata, most_bytes)
    if found is None:
        raise NotFound(
            "There is no such checkpoint in the store", where=store.url(key), hint="It is on its way, or was removed"
        )
    for folder, name in ((scope_folder, scope_name), (task_folder, layout.LATEST), (scope_folder, layout.LATEST)):
        await _add(store, folder, name, key, metadata, most_bytes)
    if not store.capabilities.conditional_put:
        await _see_that_it_is_not_removed(store, found, parts)
    return dict(found["metadata"])


async def _see_that_it_is_not_removed(store: Store, reference: Mapping[str, Any], parts: layout.KeyParts) -> None:
    """Where a write brings back what was removed in between: what has no files any more must not be listed."""
    try:
        if isinstance(reference.get("manifest"), str):
            await store.size(parts.manifest_key)
    except NotFound:
        await store.delete(parts.metadata_key)
        await store.delete(parts.task_metadata_key(reference["pathspec"]))
        raise


async def _add(
    store: Store, folder: str, name: str, key: str, metadata: Mapping[str, Any], most_bytes: int
) -> dict[str, Any] | None:
    """Add to one object, if it is of this checkpoint. Returns what it says now; None: it is not."""
    pauses = Backoff(0, MOVE_LATEST_PAUSE_S, float("inf"), jitter=True)
    for _ in range(_TIMES):
        data, tag = await read_tagged(store, folder, name)
        if data is None or data["key"] != key:
            return None
        before = data.get("metadata")
        merged = {**data, "metadata": {**(before if isinstance(before, Mapping) else {}), **metadata}}
        if (size := len(dump(merged["metadata"]))) > most_bytes:
            raise UsageError(
                f"The metadata of {key} would have {size} bytes, and {most_bytes} are the most (metadata_bytes)",
                hint="Save what is large as a file in the checkpoint",
            )
        # As JSON: True equals 1 in Python.
        if dump(merged) == dump(data) or await store.put_if(f"{folder}/{name}", dump(merged), tag):
            return merged
        await anyio.sleep(pauses.failed(anyio.current_time()))
    raise TransientStoreError("Others write there all the time", where=store.url(f"{folder}/{name}"))

"""What the store knows: reading, listing and finding the metadata of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import layout
from .concurrency import for_each
from .config import Config
from .errors import IntegrityError, NotFound, UsageError
from .manifest import load
from .stores.base import Store


async def read_reference(store: Store, folder: str, name: str) -> dict[str, Any] | None:
    """One metadata object; None where it is missing (a listing may be stale) or is not a checkpoint's."""
    key = f"{folder}/{name}"
    try:
        data = load(await store.get_bytes(key), where=key)
    except (NotFound, IntegrityError):
        return None
    return data if layout.is_reference(data) else None


async def list_references(
    store: Store, folder: str, config: Config, *, name: str | None = None, attempt: int | None = None
) -> list[dict[str, Any]]:
    """All committed checkpoints whose metadata lies in ``folder``, filtered by name and attempt, in no order."""
    wanted: list[str] = []
    async for entry in store.list(folder):
        file = entry.key[len(folder) + 1 :]
        parts = layout.metadata_name_parts(file)
        if parts and (name is None or parts[1] == name) and (attempt is None or parts[0] == attempt):
            wanted.append(file)
    found: list[dict[str, Any]] = []

    async def read(file: str) -> None:
        data = await read_reference(store, folder, file)
        if data is not None:
            found.append(data)

    await for_each(wanted, config.parts_in_flight, read)
    return found


async def newest(store: Store, folder: str, config: Config, *, by_age: bool) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that was saved with ``latest=True``.

    ``latest`` is a hint: where it is missing or makes no sense, the metadata is listed. ``by_age``: order by time
    (several runs), not by (attempt, version) (one task).
    """
    hint = await read_reference(store, folder, layout.LATEST)
    if hint is not None and by_age:
        return hint
    # A writer may have died between a commit and its ``latest``: names in the listing tell, and few are read.
    known = layout.order(hint) if hint else (-1, -1)
    newer: list[tuple[tuple[int, int], str]] = []
    async for entry in store.list(folder):
        name = entry.key[len(folder) + 1 :]
        parts = layout.metadata_name_parts(name)
        if parts and (by_age or (parts[0], parts[2]) > known):
            newer.append(((parts[0], parts[2]), name))
    best = hint
    for _, name in sorted(newer, reverse=True):
        data = await read_reference(store, folder, name)
        if data is None or not data.get("latest", True):
            continue
        if not by_age:
            return data
        if best is None or layout.age(data) > layout.age(best):
            best = data
    return best


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
        data = dict(reference)  # Its metadata may be gone while its data is there; loading will tell.
    if data is None or data["key"] != key:
        raise NotFound(
            "There is no such checkpoint in the store", where=store.url(key),
            hint="It was never committed, or was removed; list() shows what there is",
        )  # fmt: skip
    return data

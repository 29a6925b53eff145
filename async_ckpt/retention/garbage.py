"""What crashed runs have left in a store: found, and removed where somebody says so.

Nothing of it is listed, and nothing loads it. It was uploaded and never committed, or its removal was not ended. An
upload that is still under way looks the same, so only what nobody has added to for long is garbage. Where something is
removed, how long is told by the store's own clock, as this machine's may be wrong.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .. import layout
from ..config import Config
from ..errors import StoreError, UsageError
from ..stores.base import ListedObject, Store
from ..stores.catalog import read_json
from ..system.concurrency import for_each
from .delete import delete, finish

UPLOAD, MULTIPART, SHARDS, REMOVAL = "upload", "multipart", "shards", "removal"


class Garbage(NamedTuple):
    """One piece.

    Parameters
    ----------
    kind : str
        ``upload``: files that were uploaded, and never became a checkpoint; ``multipart``: parts of a file;
        ``shards``: what ranks have said of a collective checkpoint that was never committed; ``removal``: a checkpoint
        whose removal was begun and not ended.
    where : str
        The key of the checkpoint or of the file, or a folder.
    age_s : float or None
        Seconds since something was added to it; None: the store does not say.
    size : int or None
        Bytes that are known of.
    why : str
        In words.
    upload : str
        The store's id of a multipart.
    """

    kind: str
    where: str
    age_s: float | None
    size: int | None
    why: str
    upload: str = ""


class _Group:
    """The objects of what was to become one checkpoint."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.size = 0
        self.newest: float | None = None
        self.is_dated = True

    def add(self, entry: ListedObject) -> None:
        self.keys.append(entry.key)
        self.size += entry.size
        if entry.modified is None:
            self.is_dated = False
        else:
            self.newest = max(entry.modified, self.newest or entry.modified)

    def age_s(self, now: float) -> float | None:
        return now - self.newest if self.newest is not None and self.is_dated else None


async def store_time(store: Store) -> float:
    """What time it is in the store, in seconds since 1970: that of an object that is written and removed again.

    Raises
    ------
    StoreError
        It cannot be written, or the store does not say when it was.
    """
    folder = f"{layout.ROOT}/doctor/{secrets.token_hex(8)}"
    await store.put_bytes(f"{folder}/time", b"")
    found = [entry.modified async for entry in store.list(folder)]
    await store.delete(f"{folder}/time")
    if not found or found[0] is None:
        raise StoreError(
            "The store does not say when an object was written, so what is old cannot be told", where=store.url(folder),
            hint="Remove by hand what 'async-ckpt gc' shows",
        )  # fmt: skip
    return found[0]


async def find(
    store: Store, flow: str | None, *, older_than_s: float, now: float, needed: Collection[str] = ()
) -> list[Garbage]:
    """What is garbage of a flow, or of all flows; reads listings alone.

    Parameters
    ----------
    older_than_s : float
        In seconds; what was added to since then is not garbage.
    now : float
        Seconds since 1970.
    needed : collection of str
        Keys of checkpoints that are on their way.

    Raises
    ------
    StoreError
        The store cannot be read.
    """

    def is_old(age_s: float | None) -> bool:
        return age_s is not None and age_s >= older_than_s

    live = await _live(store, flow)
    found: list[Garbage] = []
    noted: set[str] = set()
    async for entry in store.list(_below("deleting", flow)):
        # One that is being removed in this moment is young.
        age_s = now - entry.modified if entry.modified is not None else None
        noted.add(_stem_of(entry.key))
        if is_old(age_s):
            found.append(Garbage(REMOVAL, entry.key, age_s, None, "its removal was begun, and not ended"))
    for key, group in (await _uploads(store, flow)).items():
        stem = key.rpartition("/")[2]
        if stem not in live and stem not in noted and key not in needed and is_old(age_s := group.age_s(now)):
            why = "its files are here, and it was never committed"
            found.append(Garbage(UPLOAD, key, age_s, group.size, why))
    for folder, group in (await _shards(store, flow)).items():
        if _stem_of_shards(folder) not in live and is_old(age_s := group.age_s(now)):
            why = "ranks have saved their parts of it, and it was never committed"
            found.append(Garbage(SHARDS, folder, age_s, group.size, why))
    async for upload in store.open_uploads(_below("artifacts", flow)):
        age_s = now - upload.began
        if is_old(age_s) and not any(layout.is_in(upload.key, key) for key in needed):
            why = "parts of it were uploaded, and it was never ended"
            found.append(Garbage(MULTIPART, upload.key, age_s, None, why, upload.upload))
    return sorted(found)


async def remove(store: Store, garbage: Iterable[Garbage], config: Config) -> list[Garbage]:
    """Remove what ``find`` has found. Returns what was removed; what was committed meanwhile stays.

    Raises
    ------
    StoreError
        The store refuses, or is out of reach. What is left can be found again.
    """
    removed: list[Garbage] = []
    for one in garbage:
        if one.kind == REMOVAL:
            await finish(store, one.where.rpartition("/")[0], config)
        elif one.kind == MULTIPART:
            await store.abort(one.where, one.upload)
        elif one.kind == SHARDS:
            await _remove_all(store, [entry.key async for entry in store.list(one.where)], config)
        elif not await _remove_upload(store, one.where, config):
            continue
        removed.append(one)
    return removed


async def _remove_upload(store: Store, key: str, config: Config) -> bool:
    """Remove what was never committed; False: it is committed now, and stays."""
    parts = layout.parse_key(key)
    if await _is_listed(store, parts.metadata_key):
        return False
    keys = [entry.key async for entry in store.list(key)]
    await _remove_all(store, [*keys, key], config)
    await store.delete(parts.manifest_key)
    if await _is_listed(store, parts.metadata_key):
        # Its agent has come back after all that time, in this very moment: a checkpoint must not be listed without
        # its files.
        await delete(store, await read_json(store, parts.metadata_key), config)
    return True


async def _is_listed(store: Store, key: str) -> bool:
    folder, _, name = key.rpartition("/")
    return any([entry.key == key async for entry in store.list(folder, name)])


async def _remove_all(store: Store, keys: Iterable[str], config: Config) -> None:
    await for_each(sorted(keys), config.files_in_flight, store.delete)


def _below(folder: str, flow: str | None) -> str:
    return f"{layout.ROOT}/{folder}" + (f"/{flow}" if flow else "")


async def _live(store: Store, flow: str | None) -> set[str]:
    """The stems of all that is listed anywhere."""
    found: set[str] = set()
    async for entry in store.list(_below("artifact_metadata", flow)):
        found.add(entry.key.rpartition("/")[2].removesuffix(".metadata"))
    async for entry in store.list(_below("metadata", flow)):
        folder, _, name = entry.key.rpartition("/")
        pathspec = folder.removeprefix(_below("metadata", None)).strip("/")
        if layout.metadata_name_parts(folder, name):
            found.add(f"{layout.pathspec_hash(pathspec)}.{name.removesuffix('.metadata')}")
    return found


async def _uploads(store: Store, flow: str | None) -> dict[str, _Group]:
    """All files and manifests, by the key of what they are or were to become."""
    groups: dict[str, _Group] = {}
    root = _below("artifacts", None)
    async for entry in store.list(_below("artifacts", flow)):
        # Four folders, and the checkpoint's own name.
        parts = entry.key.removeprefix(f"{root}/").split("/")
        _add(groups, "/".join([root, *parts[:5]]), entry)
    async for entry in store.list(_below("manifests", flow)):
        key = entry.key.removeprefix(_below("manifests", None)).removesuffix(".json")
        _add(groups, f"{root}{key}", entry)
    return groups


def _add(groups: dict[str, _Group], key: str, entry: ListedObject) -> None:
    try:
        layout.parse_key(key)
    except UsageError:
        return  # Something of somebody else.
    groups.setdefault(key, _Group()).add(entry)


async def _shards(store: Store, flow: str | None) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    async for entry in store.list(_below("shards", flow)):
        groups.setdefault(entry.key.rpartition("/")[0], _Group()).add(entry)
    return groups


def _stem_of(key: str) -> str:
    """Of a note in ``deleting``."""
    return key.rpartition("/")[2].removesuffix(".json")


def _stem_of_shards(folder: str) -> str:
    above, _, name = folder.removeprefix(f"{_below('shards', None)}/").rpartition("/")
    return f"{layout.pathspec_hash(above)}.{name}"

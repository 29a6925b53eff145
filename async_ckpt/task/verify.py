"""Reads a checkpoint in the store from its first byte to its last, and checks it against its manifest."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import layout
from ..config import Config
from ..errors import IntegrityError, NotFound
from ..manifest import Manifest
from ..stores import catalog
from ..stores.base import Progress, Store, no_progress
from ..system.concurrency import for_each


class Verified(NamedTuple):
    """What was found.

    Parameters
    ----------
    files, size : int
        Objects that were read, and their bytes.
    wrong : list of str
        What is missing or damaged, in sentences; none: it is whole.
    unchecked : int
        Objects of which nothing tells what they should hold: their sizes were compared alone.
    """

    files: int
    size: int
    wrong: list[str]
    unchecked: int


async def verify(
    store: Store, reference: Mapping[str, Any] | str, config: Config, progress: Progress = no_progress
) -> Verified:
    """Read all of a checkpoint. Each file needs as much room on the disk for temporary files while it is read.

    Raises
    ------
    UsageError, NotFound
        There is no such checkpoint.
    StoreError
        The store cannot be read.
    """
    data = await catalog.find(store, reference)
    parts = layout.parse_key(data["key"])
    objects, wrong = await _objects(store, data, parts)
    size, unchecked = 0, 0

    with tempfile.TemporaryDirectory(prefix="async-ckpt-verify-") as folder:

        async def read(number: int) -> None:
            nonlocal size, unchecked
            key, expected, crc32 = objects[number]
            path = os.path.join(folder, str(number))
            try:
                size += await store.get_file(key, path, size=expected, crc32=crc32, progress=progress)
                unchecked += crc32 is None
            except (NotFound, IntegrityError) as error:
                wrong.append(str(error))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

        await for_each(range(len(objects)), config.files_in_flight, read)
    return Verified(len(objects), size, sorted(wrong), unchecked)


async def _objects(
    store: Store, data: Mapping[str, Any], parts: layout.KeyParts
) -> tuple[list[tuple[str, int | None, list[int] | None]], list[str]]:
    """Key, size and checksums of each object, as far as they are known; and what is wrong already."""
    tar = data.get("storage_format") == "tar"
    if isinstance(data.get("manifest"), str):
        try:
            read = await catalog.read_json(store, parts.manifest_key)
            manifest = Manifest.from_json(read, where=parts.manifest_key)
        except (NotFound, IntegrityError) as error:
            return [], [str(error)]
        if tar:
            facts = manifest.tar or {}
            return [(parts.key, facts.get("size"), facts.get("crc32"))], []
        return [(f"{parts.key}/{entry.path}", entry.size, entry.crc32) for entry in manifest.files], []
    if tar:
        return [(parts.key, None, None)], []
    found = [(entry.key, entry.size, None) async for entry in store.list(parts.key)]
    return list(found), [] if found else ["It has no files in the store"]

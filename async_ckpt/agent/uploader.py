"""Brings one admitted checkpoint into the store: first all its objects, then, in its turn, its metadata.

Both steps may be repeated from the start at any time: the same keys get the same bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .. import layout
from ..catalog import read_reference
from ..concurrency import for_each
from ..config import Config
from ..crash import crash_point
from ..manifest import LINK, FileEntry, Manifest, dump
from ..source import TarMember, TarSource, captured_source
from ..spool.spool import Admitted
from ..stores.base import Progress, Store


class Uploader:
    """Works for one spool.

    Parameters
    ----------
    store : Store
        Where to.
    config : Config
        Limits.
    """

    def __init__(self, store: Store, config: Config) -> None:
        self._store, self._config = store, config

    async def upload(
        self,
        item: Admitted,
        done: Mapping[str, list[int]],
        on_file: Callable[[str, list[int]], None],
        progress: Progress,
    ) -> None:
        """Write everything but the metadata: files or tar, and the manifest with their digests.

        Parameters
        ----------
        item : Admitted
            What to upload.
        done : mapping
            Files that an earlier try brought into the store: path → CRCs.
        on_file : callable
            ``(path, crc32)`` for each hard-linked file that is in the store now: its lease may be let go.
        progress : callable
            Bytes sent.

        Raises
        ------
        StoreError, IntegrityError
            The store refused, or the snapshot is not what was captured.
        """
        parts = layout.parse_key(item.reference["key"])
        if item.reference["storage_format"] == "tar":
            manifest = await self._upload_tar(item, progress)
        else:
            manifest = await self._upload_files(item, done, on_file, progress)
        crash_point("worker:before-manifest")
        await self._store.put_bytes(parts.manifest_key, dump(manifest.to_json()))

    async def _upload_files(
        self,
        item: Admitted,
        done: Mapping[str, list[int]],
        on_file: Callable[[str, list[int]], None],
        progress: Progress,
    ) -> Manifest:
        digests = dict(done)

        async def put(entry: FileEntry) -> None:
            if entry.path in digests:
                progress(entry.size)
                return
            crash_point("worker:before-file")
            source = captured_source(item.data, entry)
            try:
                digests[entry.path] = await self._store.put_source(
                    f"{item.reference['key']}/{entry.path}", source, progress
                )
            finally:
                source.close()
            if entry.how == LINK:
                on_file(entry.path, digests[entry.path])

        await for_each(item.manifest.files, self._config.parts_in_flight, put)
        files = [FileEntry(e.path, e.size, e.mode, crc32=digests[e.path]) for e in item.manifest.files]
        return replace(item.manifest, files=files)

    async def _upload_tar(self, item: Admitted, progress: Progress) -> Manifest:
        source = TarSource(item.reference["key"], tar_members(item))
        try:
            crc32 = await self._store.put_source(item.reference["key"], source, progress)
        finally:
            source.close()
        files = [FileEntry(e.path, e.size, e.mode) for e in item.manifest.files]
        return replace(item.manifest, files=files, tar={"size": source.size, "crc32": crc32})

    async def commit(self, reference: dict[str, Any]) -> None:
        """Make an uploaded checkpoint visible, and move ``latest`` on to it unless it is on a newer one."""
        parts = layout.parse_key(reference["key"])
        data = dump(reference)
        crash_point("worker:before-commit")
        await self._store.put_bytes(parts.metadata_key, data)
        # The commit: what lists a task's checkpoints reads this folder.
        await self._store.put_bytes(parts.task_metadata_key(reference["pathspec"]), data)
        crash_point("worker:before-latest")
        if reference.get("latest"):
            task_folder = layout.metadata_folder(reference["pathspec"])
            # Read each time: an attempt on another machine, and other runs of the step, write there as well.
            current = await read_reference(self._store, task_folder, layout.LATEST)
            if current is None or layout.order(reference) >= layout.order(current):
                await self._store.put_bytes(f"{task_folder}/{layout.LATEST}", data)
            current = await read_reference(self._store, parts.scope_folder, layout.LATEST)
            if current is None or layout.age(reference) >= layout.age(current):
                await self._store.put_bytes(f"{parts.scope_folder}/{layout.LATEST}", data)


def tar_members(item: Admitted) -> list[TarMember]:
    """The members of a checkpoint's tar, directories first, links last."""
    manifest = item.manifest
    members = [TarMember(path, tarfile.DIRTYPE, mode) for path, mode in manifest.dirs]
    for entry in manifest.files:
        source = captured_source(item.data, entry)
        members.append(TarMember(entry.path, tarfile.REGTYPE, entry.mode, source=source))
    members += [TarMember(path, tarfile.SYMTYPE, 0o777, target=target) for path, target in manifest.links]
    return members

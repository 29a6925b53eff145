"""Brings one admitted checkpoint into the store: first all its objects, then, in its turn, its metadata.

Both steps may be repeated from the start at any time: the same keys get the same bytes.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import anyio

from .. import layout
from ..capture.content import TarContent, TarMember, captured_file
from ..config import MOVE_LATEST_PAUSE_S, Config
from ..errors import CheckpointError, IntegrityError, NotFound, StoreError, TransientStoreError
from ..layout import newest
from ..manifest import LINK, FileEntry, Manifest, dump, load
from ..ranks import agreement
from ..spool.journal import TAR, CheckpointState, Line, file_stored, part_stored, parts_begun
from ..spool.records import Admitted
from ..spool.unchanged import StoredFile
from ..stores.base import Content, Multipart, Place, Progress, Store, Stored, TooLong
from ..stores.catalog import read_begun, read_tagged
from ..system.backoff import Backoff
from ..system.concurrency import for_each
from ..system.crash import crash_point
from .earlier import EarlierContent

#: How often the latest checkpoint is moved anew after others came first.
_MOVES = 8

#: Smallest file without a lease that is worth a line of its own, so that it is not sent again.
_REMEMBERED_BYTES = 1 << 20

ReferenceDict = dict[str, Any]


async def _nobody_asks(reference: ReferenceDict) -> None:
    """For ``on_commit``."""


class Events(Protocol):
    """Hears how an upload goes on; called from the event loop."""

    def progress(self, count: int) -> None:
        """So many bytes were sent; a negative number takes some back."""

    def copied(self, count: int) -> None:
        """See ``Earlier.copied``."""

    def note(self, line: Line) -> None:
        """A step for the journal: a file is in the store, a multipart upload was begun, a part is in the store. Small
        files whose lease nobody holds have none.
        """


class _OpenContent(Content, Protocol):
    """Content that holds descriptors."""

    def close(self) -> None: ...


class _Log:
    """The PartsLog of one object; the store looks at it again after a failure that passed."""

    def __init__(self, path: str, known: Multipart | None, events: Events) -> None:
        self._path, self.known, self._events = path, known, events

    def began(self, upload: str, part_bytes: int) -> None:
        self.known = Multipart(upload, part_bytes)
        self._events.note(parts_begun(self._path, upload, part_bytes))

    def sent(self, number: int, part: Stored) -> None:
        assert self.known is not None, "a part of no upload"
        self.known.parts[number] = part
        self._events.note(part_stored(self._path, number, part))


class _Earlier:
    """The Earlier of one upload, which remembers what it has copied from."""

    def __init__(self, index: EarlierContent, events: Events, used: set[str]) -> None:
        self._index, self._used = index, used
        self.of, self.forget, self.copied = index.of, index.forget, events.copied

    def find(self, digests: Sequence[str]) -> Place | None:
        place = self._index.find(digests)
        if place is not None:
            self._used.add(place.key)
        return place


class CheckpointWriter:
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
        #: One commit at a time: what ``begun`` says, and where ``latest`` is, must not be mixed.
        self._committing = anyio.Lock()
        #: What ``latest`` is to be moved to, by its folder.
        self._newest: dict[str, ReferenceDict] = {}
        #: The newest that is committed of an attempt, by the key that says what it has begun to commit.
        self._last_committed: dict[str, ReferenceDict] = {}
        #: What the store has already, whoever has brought it there.
        self.earlier = EarlierContent()
        #: Keys of objects that uploads under way copy from, by the id of what is uploaded: ranks share a key.
        self._used: dict[str, set[str]] = {}
        #: What the user should know, as of a store; usually nothing.
        self.notice = ""

    async def upload(
        self, item: Admitted, known: CheckpointState, unchanged: Mapping[str, StoredFile], events: Events
    ) -> None:
        """Write everything but the metadata: files or tar, and the manifest with their digests; of a shard, what rank 0
        makes the manifest of.

        Parameters
        ----------
        item : Admitted
            What to upload.
        known : journal.CheckpointState
            What earlier tries have brought into the store.
        unchanged : mapping
            Files that the store has under another key, from an earlier checkpoint, by path.
        events : Events
            Hears what is in the store now.

        Raises
        ------
        StoreError, IntegrityError
            The store refused, or the snapshot is not what was captured.
        """
        parts = layout.parse_key(item.reference["key"])
        self._used[item.id] = {file.key for file in unchanged.values()}
        try:
            if item.reference["storage_format"] == "tar":
                manifest = await self._upload_tar(item, known, events)
            else:
                manifest = await self._upload_files(item, known, unchanged, events)
        finally:
            del self._used[item.id]
        crash_point("uploader:before-manifest")
        if layout.is_shard(item.reference):
            await agreement.put_shard(self._store, item.reference, manifest)
            return
        await self._store.put_bytes(parts.manifest_key, dump(manifest.to_json()))

    async def _upload_files(
        self, item: Admitted, known: CheckpointState, unchanged: Mapping[str, StoredFile], events: Events
    ) -> Manifest:
        stored = dict(known.files)

        async def put(entry: FileEntry) -> None:
            key = f"{item.reference['key']}/{entry.path}"
            if entry.path not in stored:
                crash_point("uploader:before-file")
                found = await self._copy_unchanged(unchanged.get(entry.path), key, entry.size)
                if found is not None:
                    events.copied(entry.size)
                else:
                    found = await self._send(item, key, entry.path, captured_file(item.data, entry), known, events)
                stored[entry.path] = found
                if entry.how == LINK or entry.size >= _REMEMBERED_BYTES:
                    events.note(file_stored(entry.path, found))
            self.earlier.add(key, entry.size, stored[entry.path])

        await for_each(item.manifest.files, self._config.files_in_flight, put)
        await self._put_files_behind_links(item, events.progress)
        files = [
            FileEntry(e.path, e.size, e.mode, mtime_ns=e.mtime_ns, **stored[e.path]._asdict())
            for e in item.manifest.files
        ]
        return replace(item.manifest, files=files)

    async def _put_files_behind_links(self, item: Admitted, progress: Progress) -> None:
        """Store what symbolic links lead to under the links' own paths as well. Loads of ours make links again, by the
        manifest; metaflow-checkpoint knows no links, and would not have the files at all.
        """
        behind = item.manifest.files_behind_links()
        most = self._config.max_files_behind_links
        if len(behind) > most:
            self.notice = (
                f"Symbolic links in {item.saved_path} lead to {len(behind)} files, of which {most} are stored under "
                "the links' own paths: what metaflow-checkpoint loads lacks the others"
            )

        async def put(number: int) -> None:
            path, entry = behind[number]
            base = item.reference["key"]
            if await self._copy(f"{base}/{entry.path}", f"{base}/{path}", entry.size) is None:
                source = captured_file(item.data, entry)
                try:
                    await self._store.put_content(f"{base}/{path}", source, progress)
                    progress(-entry.size)  # It shows that something moves, and is no part of the checkpoint's size.
                finally:
                    source.close()

        await for_each(range(min(len(behind), most)), self._config.files_in_flight, put)

    async def _copy_unchanged(self, file: StoredFile | None, key: str, size: int) -> Stored | None:
        """Copy a file that nobody has touched since it was stored; None: it is to be sent."""
        if file is None or not file.stored.etag:  # Without one, the object may be another by now.
            return None
        etag = await self._copy(file.key, key, size, file.stored.etag)
        return file.stored._replace(etag=etag) if etag is not None else None

    async def _copy(self, source_key: str, key: str, size: int, etag: str = "") -> str | None:
        """Copy an object inside the store, and return the ETag of the copy; None where that cannot be done, and the
        bytes are to be sent.
        """
        if not self._store.capabilities.copy:
            return None
        try:
            return await self._store.copy(source_key, key, size, etag)
        except TransientStoreError:
            raise
        except StoreError:  # The earlier checkpoint was deleted or replaced, or this store copies no such object.
            return None

    async def _upload_tar(self, item: Admitted, known: CheckpointState, events: Events) -> Manifest:
        source = TarContent(item.reference["key"], tar_members(item))
        stored = known.files.get(TAR)
        if stored is None:
            stored = await self._send(item, item.reference["key"], TAR, source, known, events)
            events.note(file_stored(TAR, stored))
        self.earlier.add(item.reference["key"], source.size, stored)
        files = [FileEntry(e.path, e.size, e.mode, mtime_ns=e.mtime_ns) for e in item.manifest.files]
        return replace(item.manifest, files=files, tar={"size": source.size, **stored._asdict()})

    def copied_from(self) -> set[str]:
        """Keys of the objects that uploads under way copy from."""
        return set().union(*self._used.values())

    async def _send(
        self, item: Admitted, key: str, path: str, content: _OpenContent, known: CheckpointState, events: Events
    ) -> Stored:
        log = _Log(path, known.parts.get(path), events)
        try:
            earlier = _Earlier(self.earlier, events, self._used[item.id])
            return await self._store.put_content(key, content, events.progress, log, earlier)
        finally:
            content.close()

    async def commit(
        self, batch: Sequence[ReferenceDict], on_commit: Callable[[ReferenceDict], Awaitable[None]] = _nobody_asks
    ) -> None:
        """Make uploaded checkpoints of one task visible, in order, and move ``latest`` on to the newest of them unless
        it is on a newer one, or cannot be moved.

        Parameters
        ----------
        on_commit : callable
            Is awaited with each as soon as it is committed, before the next one is and before ``latest`` moves.

        Raises
        ------
        CheckpointError
            Why the next one is not committed, after those of which ``on_commit`` has heard. Others may be visible as
            well; they are to be committed again.
        """
        if shards := [reference["key"] for reference in batch if layout.is_shard(reference)]:
            raise ValueError(f"One rank's part is no checkpoint: {shards}")
        async with self._committing:
            begun = await self._begun(batch)
            described = {layout.parse_key(reference["key"]).metadata_key: dump(reference) for reference in batch}
            failed = await self._put_all(begun, described)
            for key in begun.keys() & failed.keys():
                raise failed[key]
            refused: CheckpointError | None = None
            try:
                for number, reference in enumerate(batch):
                    crash_point("uploader:before-commit")
                    if number:
                        crash_point("uploader:in-batch")
                    await self._commit(reference, failed)
                    await on_commit(reference)
            except CheckpointError as error:
                refused = error
            crash_point("uploader:before-latest")
            await self._move_latest()
        if refused is not None:
            raise refused

    async def _commit(self, reference: ReferenceDict, failed: Mapping[str, CheckpointError]) -> None:
        parts = layout.parse_key(reference["key"])
        if parts.metadata_key in failed:
            raise failed[parts.metadata_key]
        # The commit: what lists a task's checkpoints reads this folder, and finds no gap in it.
        await self._put_new(parts.task_metadata_key(reference["pathspec"]), dump(reference))
        self._note_committed(reference)
        if reference.get("latest"):
            self._note_newest_everywhere(reference)

    async def _begun(self, batch: Sequence[ReferenceDict]) -> dict[str, bytes]:
        """What is written before a batch is committed (``layout`` says why), by key: one object for each attempt; none
        for a gang.

        When time is short the newest goes first, so one that is committed already may be newer than the batch. It is
        named again: this object must not hide it from readers while ``latest`` is behind.
        """
        keys: dict[str, list[str]] = {}
        for reference in sorted(batch, key=layout.order, reverse=True):
            if (key := _begun_key(reference)) is not None:
                keys.setdefault(key, []).append(reference["key"])
        for key, named in keys.items():
            if key not in self._last_committed:
                await self._recall(key, batch[0]["pathspec"])
            last = self._last_committed.get(key)
            if last is not None and layout.order(last) > layout.parse_key(named[0]).order:
                named.insert(0, last["key"])
        return {key: dump({"keys": named}) for key, named in keys.items()}

    async def _recall(self, key: str, pathspec: str) -> None:
        """Find the newest that an uploader before this one has committed, for which it may not have moved ``latest``.

        A store that does not tell holds up no commit; it is asked again with the next one.
        """
        with contextlib.suppress(CheckpointError, TimeoutError), anyio.fail_after(self._config.latest_timeout_s):
            for named in await read_begun(self._store, key) or []:
                reference = await agreement.read_commit(self._store, {"key": named, "pathspec": pathspec})
                if reference is not None:
                    self._note_committed(reference)
                    self._note_newest_everywhere(reference)

    def _note_committed(self, reference: ReferenceDict) -> None:
        key = _begun_key(reference)
        last = self._last_committed.get(key) if key is not None else None
        if key is not None and (last is None or layout.order(last) < layout.order(reference)):
            self._last_committed[key] = reference

    async def _put_all(self, objects: Mapping[str, bytes], new: Mapping[str, bytes]) -> dict[str, CheckpointError]:
        """Write small objects side by side; the ``new`` ones are metadata, of which none is written over another
        checkpoint's. Returns what could not be written, by key.
        """
        failed: dict[str, CheckpointError] = {}

        async def put(key: str) -> None:
            try:
                if key in new:
                    await self._put_new(key, new[key])
                else:
                    await self._store.put_bytes(key, objects[key])
            except CheckpointError as error:
                failed[key] = error

        await for_each([*objects, *new], self._config.files_in_flight, put)
        return failed

    async def _put_new(self, key: str, data: bytes) -> None:
        """Write metadata where there is none, or what is there is none; as far as the store can tell the two apart.

        Raises
        ------
        StoreError
            Another checkpoint has this key.
        """
        tag = None
        pauses = _pauses()
        for _ in range(_MOVES):
            if await self._store.put_if(key, data, tag):
                return
            try:
                found, tag = await self._store.get_tagged(key)
            except NotFound:  # Somebody writes or removes it in this moment.
                tag = None
                await anyio.sleep(pauses.failed(anyio.current_time()))
                continue
            except TooLong as error:
                tag = error.tag
                continue
            other = _reference(found, key)
            if found == data or (other is not None and _is_same(other, load(data, where=key))):
                return  # An earlier try of ours.
            if other is not None:
                raise StoreError(
                    "Another start of the same attempt has committed a checkpoint under this key: that one stays as it "
                    "is, and this one is not stored",
                    where=self._store.url(key), hint="End one of the two starts; the step's retry counts anew",
                )  # fmt: skip
        raise TransientStoreError("Others write there all the time", where=self._store.url(key))

    async def _move_latest(self) -> None:
        """Move ``latest`` on to the newest that was noted. It is a hint: what cannot be moved is said, moved with the
        next commit, and holds up none for long.
        """
        try:
            with anyio.fail_after(self._config.latest_timeout_s):
                await for_each(list(self._newest), self._config.files_in_flight, self._move)
        except (CheckpointError, TimeoutError) as error:
            why = str(error) or f"no end within {self._config.latest_timeout_s:g} s"
            self.notice = (
                "Checkpoints are in the store, but which is the latest could not be noted there, so other programs may "
                f"see an earlier one: {why}"
            )

    def _note_newest_everywhere(self, reference: ReferenceDict) -> None:
        self._note_newest(layout.metadata_folder(reference["pathspec"]), reference)
        self._note_newest(layout.parse_key(reference["key"]).scope_folder, reference)

    def _note_newest(self, folder: str, reference: ReferenceDict) -> None:
        if folder not in self._newest or not newest.newer(self._newest[folder], reference):
            self._newest[folder] = reference

    async def _move(self, folder: str) -> None:
        """Move one ``latest``, unless it is on a newer checkpoint."""
        reference = self._newest[folder]
        # An attempt on another machine, and other runs of the step, write there as well.
        pauses = _pauses()
        for _ in range(_MOVES):
            current, tag = await read_tagged(self._store, folder, layout.LATEST)
            moved_on = current is not None and (reference == current or newest.blocks(current, reference))
            if moved_on or await self._store.put_if(f"{folder}/{layout.LATEST}", dump(reference), tag):
                del self._newest[folder]
                return
            await anyio.sleep(pauses.failed(anyio.current_time()))
        raise TransientStoreError("Others move the latest checkpoint all the time", where=self._store.url(folder))


def _pauses() -> Backoff:
    """How long to wait where others write the same object."""
    return Backoff(0, MOVE_LATEST_PAUSE_S, float("inf"), jitter=True)


def _begun_key(reference: ReferenceDict) -> str | None:
    """Key of what its attempt has begun to commit; None where that says nothing of it."""
    if not reference.get("latest") or reference.get("nodes"):
        return None
    attempt, version = layout.order(reference)
    return layout.begun_key(reference["pathspec"], attempt, version // layout.START_STEP)


def _reference(data: bytes, key: str) -> ReferenceDict | None:
    """What an object says, if that is a checkpoint's metadata."""
    with contextlib.suppress(IntegrityError):
        found: ReferenceDict = load(data, where=key)
        return found if layout.is_reference(found) else None
    return None


def _is_same(one: ReferenceDict, other: ReferenceDict) -> bool:
    """Whether two references are of one save: no other has the same key and the same microsecond."""
    at = one.get("created_at")
    return at is not None and at == other.get("created_at") and one["key"] == other["key"]


def tar_members(item: Admitted) -> list[TarMember]:
    """The members of a checkpoint's tar, directories first, links last."""
    manifest = item.manifest
    members = [TarMember(path, tarfile.DIRTYPE, mode, mtime_ns) for path, mode, mtime_ns in manifest.dirs]
    for entry in manifest.files:
        source = captured_file(item.data, entry)
        members.append(TarMember(entry.path, tarfile.REGTYPE, entry.mode, entry.mtime_ns, content=source))
    members += [TarMember(link.path, tarfile.SYMTYPE, 0o777, target=link.target) for link in manifest.links]
    return members

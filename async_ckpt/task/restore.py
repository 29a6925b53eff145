"""Loading checkpoints: from the store, or from this machine's spool where they have not left it yet.

Whatever is loaded first arrives in a directory of its own (``landing``). Paths come from manifests, keys and tars that
somebody else may have written: none of them is ever followed out of the destination.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from .. import layout
from ..capture.content import CapturedFile, captured_file
from ..capture.link_back import LinkBack
from ..config import Config
from ..errors import CheckpointError, IntegrityError, NotFound
from ..manifest import MAX_DEPTH, FileEntry, Manifest, check_path
from ..spool.records import Admitted, torn_file
from ..stores import catalog
from ..stores.base import ListedObject, Store
from ..system.concurrency import for_each
from ..system.files import set_mode, set_mtime
from .landing import Arrival, Landing, make_links

_USUAL = Arrival()

#: Errors that come of reading damaged or hostile metadata, with types, numbers and depths that nobody expects.
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)


async def find_and_load(
    store: Store,
    reference: Mapping[str, Any] | str,
    destination: str,
    config: Config,
    own: Callable[[int], int] | None = None,
    arrival: Arrival = _USUAL,
) -> dict[str, Any]:
    """Load what a reference, a plain dict or a key names, and return its stored metadata; raises what
    ``catalog.find``, ``load_from_store`` and ``own`` do.

    ``own`` tells for the number of ranks that saved it together which of them this one is: only its files are loaded.
    """
    data = await catalog.find(store, reference)
    rank = own(int(data["world"])) if own is not None and data.get("world") else None
    await load_from_store(store, data, destination, config, rank, arrival)
    return data


async def load_from_store(
    store: Store,
    reference: Mapping[str, Any],
    destination: str,
    config: Config,
    rank: int | None = None,
    arrival: Arrival = _USUAL,
) -> None:
    """Load a committed checkpoint into the directory ``destination`` (made if missing; what is there stays, same
    names are replaced, unless ``arrival`` says otherwise). Of a collective one, ``rank`` may choose the shard.

    Raises
    ------
    NotFound
        It, or one of its files, is not in the store.
    IntegrityError
        A file is not what was saved, or a path leads out of the destination; names it.
    """
    key = layout.parse_key(reference["key"]).key
    if rank is not None:  # What else is there may be the other ranks'.
        arrival = replace(arrival, tell_stale=False)
    with Landing(destination, arrival) as staging, _damaged(store.url(key)):
        manifest = await _read_manifest(store, reference)
        if manifest is not None and rank is not None:
            manifest = manifest.of_rank(rank)
        if reference["storage_format"] == "tar":
            await _load_tar(store, key, manifest, staging, config)
        else:
            await _load_files(store, key, manifest, staging, config, arrival.files)


@contextlib.contextmanager
def _damaged(where: str) -> Iterator[None]:
    """Turn all errors that come of metadata without sense into one: anybody may have written what is read."""
    try:
        yield
    except CheckpointError:
        raise
    except (*_NONSENSE, FileNotFoundError) as error:
        raise IntegrityError(
            f"The checkpoint cannot be read: {type(error).__name__}: {error}", where=where, hint="Load an earlier one"
        ) from error


async def _read_manifest(store: Store, reference: Mapping[str, Any]) -> Manifest | None:
    """Our checkpoints name their manifest. Those of metaflow-checkpoint have none: they are loaded by listing."""
    if not isinstance(reference.get("manifest"), str):
        return None
    key = layout.parse_key(reference["key"]).manifest_key
    return Manifest.from_json(await catalog.read_json(store, key), where=key)


def _only(manifest: Manifest, files: Collection[str] | None, where: str) -> Manifest:
    """What is asked for of a checkpoint: all of it, or some files."""
    try:
        return manifest if files is None else manifest.only(files)
    except KeyError as error:
        raise NotFound(f"The checkpoint has no file {error}", where=where, hint="Load files that it has") from None


async def _load_files(
    store: Store, key: str, manifest: Manifest | None, staging: str, config: Config, only: Collection[str] | None
) -> None:
    if manifest is None:
        files = [FileEntry(_inside(entry, key), entry.size, 0o644) async for entry in store.list(key)]
        if not files:
            raise NotFound("The checkpoint has no files in the store", where=store.url(key), hint="Load an earlier one")
        manifest = Manifest(files)
    manifest = _only(manifest, only, store.url(key))
    _make_directories(manifest, staging)

    async def fetch(entry: FileEntry) -> None:
        target = os.path.join(staging, entry.path)
        await store.get_file(f"{key}/{entry.path}", target, size=entry.size, crc32=entry.crc32)
        set_mode(target, entry.mode)
        set_mtime(target, entry.mtime_ns)

    await for_each(manifest.files, config.files_in_flight, fetch)
    _finish(manifest, staging, config)


def _inside(entry: ListedObject, key: str) -> str:
    try:
        return check_path(entry.key[len(key) + 1 :])
    except ValueError as error:
        raise IntegrityError(f"The store lists a file outside of the checkpoint: {error}", where=entry.key) from error


async def _load_tar(store: Store, key: str, manifest: Manifest | None, staging: str, config: Config) -> None:
    facts = (manifest.tar if manifest else None) or {}
    archive = os.path.join(os.path.dirname(staging), "tar")  # The load's own directory.
    try:
        await store.get_file(key, archive, size=facts.get("size"), crc32=facts.get("crc32"))
        extract_tar(archive, staging, config, where=store.url(key))
        if manifest is not None:  # It knows them to the nanosecond.
            for entry in manifest.files:
                set_mtime(os.path.join(staging, entry.path), entry.mtime_ns)
            for folder in reversed(manifest.dirs):
                set_mtime(os.path.join(staging, folder.path), folder.mtime_ns)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(archive)


def extract_tar(archive: str, destination: str, config: Config, *, where: str) -> None:
    """Extract a tar that somebody else may have made.

    Raises
    ------
    IntegrityError
        It is damaged, or a member has an absolute path, a ``..``, stands behind a symbolic link, or is a device;
        names it.
    """
    links: dict[str, str] = {}
    folders: list[tuple[str, int, int]] = []
    left = os.path.getsize(archive)
    try:
        with tarfile.open(archive, "r:", tarinfo=_Member) as tar:
            for member in tar:
                name = os.path.normpath(member.name) if member.name else "."
                if os.path.isabs(member.name) or ".." in member.name.split("/"):
                    raise IntegrityError(f"The tar's member {member.name!r} leads out of the destination", where=where)
                target = os.path.join(destination, name)
                if name.count("/") >= MAX_DEPTH:
                    raise IntegrityError(f"A member of the tar is more than {MAX_DEPTH} folders deep", where=where)
                if member.issparse():  # We make none, and few bytes of one could fill any disk.
                    raise IntegrityError(f"The tar's member {member.name!r} is sparse", where=where)
                if member.isdir():
                    os.makedirs(target, exist_ok=True)
                    folders.append((target, member.mode & 0o777 | 0o700, int(member.mtime * 10**9)))
                elif member.issym():
                    links[name] = member.linkname
                elif member.isreg() or member.islnk():  # A hard link's content is that of the member it names.
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    content = tar.extractfile(member)
                    if content is None:
                        raise IntegrityError(f"The tar's member {member.name!r} has no content", where=where)
                    left -= member.size if member.isreg() else 0
                    if left < 0:
                        raise IntegrityError(f"The tar's member {member.name!r} is longer than the tar", where=where)
                    with content, open(target, "wb") as file:
                        shutil.copyfileobj(content, file, 1 << 20)
                    set_mode(target, member.mode & 0o777)
                    set_mtime(target, int(member.mtime * 10**9))
                else:
                    raise IntegrityError(
                        f"The tar's member {member.name!r} is neither file nor directory nor link", where=where
                    )
            # Last, so that nothing is made through one: neither a file nor another link's parent.
            for link in links:
                os.makedirs(os.path.dirname(os.path.join(destination, link)), exist_ok=True)
            make_links(links, destination, config)
            for target, mode, mtime_ns in reversed(folders):
                set_mode(target, mode)
                set_mtime(target, mtime_ns)
    except CheckpointError:
        raise
    except (tarfile.TarError, EOFError, *_NONSENSE, FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(f"The tar cannot be read: {error}", where=where, hint="Load an earlier one") from error


class _Member(tarfile.TarInfo):
    """A member that does not lead back to what stands before it: ``tarfile`` would read round and round."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        before = tar.offset
        member = super().fromtarfile(tar)
        if member.size < 0 or tar.offset <= before:
            raise tarfile.ReadError(f"The member {member.name!r} is of negative size, or leads back in the tar")
        return member


def load_from_spool(
    item: Admitted,
    destination: str,
    config: Config,
    links: LinkBack | None = None,
    guard: Callable[[dict[str, int]], None] = lambda leases: None,
    arrival: Arrival = _USUAL,
) -> None:
    """Load a checkpoint that this machine still has on its disk, without the network. Its files may be made private
    meanwhile.

    Parameters
    ----------
    links : LinkBack or None
        Links files out of the snapshot where that is safe. All others are cloned or copied; None: all are.
    guard : callable
        Gets the leases of those links (path → descriptor) before the first file has its final name, and holds them
        until the checkpoint is in the store.

    Raises
    ------
    FileNotFoundError
        It was released meanwhile, as it is in the store now.
    IntegrityError
        It was written to while nobody guarded it.
    """
    with contextlib.ExitStack() as stack:
        if links is not None:
            stack.callback(links.close)
        manifest = _only(item.manifest, arrival.files, item.data)
        staging = stack.enter_context(Landing(destination, arrival))
        _make_directories(manifest, staging)
        for entry in manifest.files:
            target = os.path.join(staging, entry.path)
            if links is not None and links.link(entry, item.file(entry.path), target):
                continue
            _copy(captured_file(item.data, entry), target)
            set_mode(target, entry.mode)
            set_mtime(target, entry.mtime_ns)
        # After the copies: what is as it was captured now was so while it was copied.
        torn = torn_file(item, {})
        if torn is not None:
            if not os.path.isdir(item.data):
                raise FileNotFoundError(item.data)
            raise IntegrityError(
                f"The captured file {torn} was written to after the save", where=item.data, hint="Load an earlier one"
            )
        if links is not None:
            guard(links.hand_over())
        _finish(manifest, staging, config)


def _copy(captured: CapturedFile, target: str) -> None:
    try:
        with open(target, "wb") as file:
            captured.copy_to(file.fileno())
    except IntegrityError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # As a rule, the snapshot was released.
            raise FileNotFoundError(captured.name) from error
        raise


def _make_directories(manifest: Manifest, staging: str) -> None:
    for folder in manifest.dirs:
        os.makedirs(os.path.join(staging, folder.path), exist_ok=True)
    for parent in {os.path.dirname(path) for path in manifest.paths}:
        os.makedirs(os.path.join(staging, parent), exist_ok=True)


def _finish(manifest: Manifest, staging: str, config: Config) -> None:
    """Links last, so that nothing is written through one; then the directories' modes and times, deepest first."""
    make_links({link.path: link.target for link in manifest.links}, staging, config)
    for path, mode, mtime_ns in reversed(manifest.dirs):
        set_mode(os.path.join(staging, path), mode | 0o700)
        set_mtime(os.path.join(staging, path), mtime_ns)

"""Loading what somebody else may have written, and leaving things as they were when it cannot be loaded."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout, manifest
from async_ckpt.capture.content import TarContent, TarMember
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError, IntegrityError, NotFound, SnapshotError, UsageError
from async_ckpt.manifest import COPY, LINK, PACKED, Directory, FileEntry, Manifest, Symlink
from async_ckpt.spool.records import Admitted
from async_ckpt.stores.local import LocalStore
from async_ckpt.task import restore
from async_ckpt.task.landing import Arrival
from harness.tasks.task import TASK

KEY = TASK.key("mfchckpt", 0)
MANIFEST_KEY = layout.parse_key(KEY).manifest_key

Member = tuple[str, bytes, str | bytes]


def tar_of(path: Path, members: list[Member]) -> None:
    """A tar with (name, type, content or link target) as it stands, however hostile."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(value, bytes):
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                tar.addfile(info)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Room:
    """A destination with something in it, and things beside it that nothing may touch."""

    def __init__(self, base: Path) -> None:
        self.base, self.destination, self.store = base, base / "in/here", LocalStore(str(base / "store"))
        self.destination.mkdir(parents=True)
        (self.destination / "mine").write_text("mine")
        (base / "outside").mkdir()
        (base / "outside/victim").write_text("untouched")

    def load(self, arrival: Arrival | None = None, **fields: Any) -> None:
        reference = {"key": KEY, "storage_format": "files", "manifest": MANIFEST_KEY, **fields}
        given = {} if arrival is None else {"arrival": arrival}
        asyncio.run(restore.load_from_store(self.store, reference, str(self.destination), Config(), **given))

    def put(self, key: str, data: bytes) -> None:
        asyncio.run(self.store.put_bytes(key, data))

    def put_manifest(self, **fields: Any) -> None:
        self.put(
            MANIFEST_KEY,
            json.dumps({"format": manifest.FORMAT, "files": [], "dirs": [], "links": [], **fields}).encode(),
        )

    def put_tar(self, members: list[Member]) -> None:
        path = self.base / "made.tar"
        tar_of(path, members)
        self.put(KEY, path.read_bytes())
        path.unlink()

    def assert_untouched(self) -> None:
        assert tree(self.destination) == {"mine"}
        assert (self.destination / "mine").read_text() == "mine"
        assert tree(self.base / "outside") == {"victim"}
        assert (self.base / "outside/victim").read_text() == "untouched"
        assert {path.name for path in self.base.iterdir()} <= {"in", "store", "outside"}
        assert {path.name for path in (self.base / "in").iterdir()} == {"here"}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def file(path: str, data: bytes, mode: int = 0o644) -> dict[str, Any]:
    import zlib

    return {"path": path, "size": len(data), "mode": mode, "crc32": [zlib.crc32(data)] if data else []}


HOSTILE_TARS: dict[str, Callable[[Path], list[Member]]] = {
    "absolute path": lambda base: [(str(base / "outside/victim"), tarfile.REGTYPE, b"bad")],
    "dot dot": lambda _: [("../../outside/victim", tarfile.REGTYPE, b"bad")],
    "dot dot inside": lambda _: [("a/../../../outside/victim", tarfile.REGTYPE, b"bad")],
    "file behind a link": lambda base: [
        ("x", tarfile.SYMTYPE, str(base / "outside")), ("x/victim", tarfile.REGTYPE, b"bad"),
    ],
    "link behind a link": lambda base: [
        ("x", tarfile.SYMTYPE, str(base / "outside")), ("x/evil", tarfile.SYMTYPE, "/etc/passwd"),
    ],
    "directory behind a link": lambda base: [
        ("x", tarfile.SYMTYPE, str(base / "outside")), ("x/evil", tarfile.DIRTYPE, ""),
    ],
    "file in place of a link": lambda base: [
        ("x", tarfile.SYMTYPE, str(base / "outside/victim")), ("x", tarfile.REGTYPE, b"bad"),
    ],
    "hard link to outside": lambda base: [("x", tarfile.LNKTYPE, str(base / "outside/victim"))],
    "character device": lambda _: [("null", tarfile.CHRTYPE, "")],
    "block device": lambda _: [("disk", tarfile.BLKTYPE, "")],
    "FIFO": lambda _: [("pipe", tarfile.FIFOTYPE, "")],
    "a good file before the bad one": lambda _: [("ok", tarfile.REGTYPE, b"ok"), ("../bad", tarfile.REGTYPE, b"bad")],
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_TARS)
def test_a_hostile_tar_is_refused_and_touches_nothing(room: Room, kind: str) -> None:
    room.put_tar(HOSTILE_TARS[kind](room.base))
    with pytest.raises(IntegrityError):
        room.load(storage_format="tar", manifest=None)
    room.assert_untouched()


def test_a_symbolic_link_in_a_tar_is_kept_as_it_is_unless_it_leads_out(room: Room) -> None:
    links = [("link", tarfile.SYMTYPE, "../../outside"), ("dangling", tarfile.SYMTYPE, "d/../gone")]
    room.put_tar([*links, ("file", tarfile.REGTYPE, b"x")])
    room.load(storage_format="tar", manifest=None)
    assert not os.path.lexists(room.destination / "link")
    assert os.readlink(room.destination / "dangling") == "d/../gone"
    assert tree(room.base / "outside") == {"victim"}


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\0" * 511])
def test_what_is_no_tar_is_refused_or_empty_and_changes_nothing(room: Room, data: bytes) -> None:
    room.put(KEY, data)
    with pytest.raises(IntegrityError):
        room.load(storage_format="tar", manifest=None)
    room.assert_untouched()


def test_a_truncated_tar_is_refused(room: Room) -> None:
    room.put_tar([("a", tarfile.REGTYPE, b"x" * 5000), ("b", tarfile.REGTYPE, b"y" * 5000)])
    path = Path(room.store.root, KEY)
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(IntegrityError):
        room.load(storage_format="tar", manifest=None)
    room.assert_untouched()


def test_modes_of_files_and_directories_come_back_from_a_tar(room: Room) -> None:
    with tarfile.open(room.base / "made.tar", "w") as tar:
        for name, kind, mode in (("d", tarfile.DIRTYPE, 0o750), ("d/script", tarfile.REGTYPE, 0o755)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            tar.addfile(info)
    room.put(KEY, (room.base / "made.tar").read_bytes())
    room.load(storage_format="tar", manifest=None)
    assert stat.S_IMODE((room.destination / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((room.destination / "d/script").stat().st_mode) == 0o755


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_arrive_with_content_modes_links_and_empty_directories(room: Room) -> None:
    room.put(f"{KEY}/d/weights", b"w" * 1000)
    room.put(f"{KEY}/empty", b"")
    room.put_manifest(
        files=[file("d/weights", b"w" * 1000, 0o600), file("empty", b"", 0o755)],
        dirs=[["d", 0o750], ["nothing", 0o711]],
        links=[["link", "d/weights"], ["dangling", "nowhere"]],
    )
    room.load()
    assert (room.destination / "d/weights").read_bytes() == b"w" * 1000
    assert stat.S_IMODE((room.destination / "d/weights").stat().st_mode) == 0o600
    assert stat.S_IMODE((room.destination / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((room.destination / "empty").stat().st_mode) == 0o755
    assert stat.S_IMODE((room.destination / "nothing").stat().st_mode) == 0o711
    assert os.readlink(room.destination / "dangling") == "nowhere"
    assert (room.destination / "link").read_bytes() == b"w" * 1000
    assert (room.destination / "mine").read_text() == "mine"


TIMES = {"d/weights": 1_500_000_000_111_222_333, "old": -5_000_000_000, "d": 1_400_000_000_999_888_777}


def test_some_files_of_a_checkpoint_arrive_alone(room: Room) -> None:
    room.put(f"{KEY}/a/one", b"1")
    room.put_manifest(
        files=[file("a/one", b"1"), file("two", b"2")],  # The second one is not even there.
        dirs=[["empty", 0o755]], links=[["link", "a/one"]],
    )  # fmt: skip
    room.load(arrival=Arrival(files=["a/one"]))
    assert tree(room.destination) == {"mine", "a", "a/one"}
    room.load(arrival=Arrival(files=["link", "a/one"]))
    assert tree(room.destination) == {"mine", "a", "a/one", "link"}
    with pytest.raises(NotFound, match="The checkpoint has no file 'three'"):
        room.load(arrival=Arrival(files=["a/one", "three"]))
    assert tree(room.destination) == {"mine", "a", "a/one", "link"}


def test_modification_times_come_back_from_the_store(room: Room) -> None:
    for path in ("d/weights", "old"):
        room.put(f"{KEY}/{path}", b"w")
    room.put_manifest(
        files=[{**file(path, b"w"), "mtime_ns": TIMES[path]} for path in ("d/weights", "old")],
        dirs=[["d", 0o750, TIMES["d"]]],
    )
    room.load()
    assert {path: os.stat(room.destination / path).st_mtime_ns for path in TIMES} == TIMES


@pytest.mark.parametrize("described", [True, False])
def test_modification_times_come_back_from_a_tar(room: Room, described: bool) -> None:
    members = [TarMember("d", tarfile.DIRTYPE, 0o755, TIMES["d"])]
    members += [TarMember(path, tarfile.REGTYPE, 0o644, TIMES[path]) for path in ("d/weights", "old")]
    tar = TarContent("tar", members)
    room.put(KEY, tar.pread(tar.size, 0))
    if described:
        files = [{**file(path, b""), "mtime_ns": TIMES[path]} for path in ("d/weights", "old")]
        room.put_manifest(files=files, dirs=[["d", 0o750, TIMES["d"]]])
    room.load(storage_format="tar", manifest=MANIFEST_KEY if described else None)
    found = {path: os.stat(room.destination / path).st_mtime_ns for path in TIMES}
    if described:
        assert found == TIMES
    else:  # As metaflow-checkpoint reads it: whole seconds, none before 1970.
        whole = {path: time_ns // 10**9 for path, time_ns in TIMES.items()}
        assert {path: time_ns // 10**9 for path, time_ns in found.items()} | {"old": 0} == whole | {"old": 0}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_file_system_without_permissions_costs_no_checkpoint(
    room: Room, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    room.put(f"{KEY}/d/weights", b"w")
    room.put_manifest(files=[file("d/weights", b"w")], dirs=[["d", 0o750]])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "chmod", refuse)
    room.load()
    assert (room.destination / "d/weights").read_bytes() == b"w"


@pytest.mark.parametrize("mtime_ns", [2**62, -(2**62), 10**17])
def test_a_time_that_no_file_system_has_costs_no_checkpoint(room: Room, mtime_ns: int) -> None:
    room.put(f"{KEY}/a", b"w")
    room.put_manifest(files=[{**file("a", b"w"), "mtime_ns": mtime_ns}])
    room.load()
    assert (room.destination / "a").read_bytes() == b"w"


def test_a_missing_object_is_noticed_and_nothing_changes(room: Room) -> None:
    room.put(f"{KEY}/a", b"1")
    room.put_manifest(files=[file("a", b"1"), file("b", b"2")])
    with pytest.raises(NotFound):
        room.load()
    room.assert_untouched()


@pytest.mark.parametrize("data", [b"x", b"12", b""])
def test_an_object_that_is_not_what_was_saved_is_noticed_and_nothing_changes(room: Room, data: bytes) -> None:
    room.put(f"{KEY}/a", data)
    room.put_manifest(files=[file("a", b"1")])
    with pytest.raises(IntegrityError):
        room.load()
    room.assert_untouched()


def test_a_manifest_that_writes_through_its_own_link_is_refused(room: Room) -> None:
    room.put(f"{KEY}/x/victim", b"bad")
    room.put_manifest(files=[file("x/victim", b"bad")], links=[["x", str(room.base / "outside")]])
    with pytest.raises(CheckpointError):
        room.load()
    room.assert_untouched()


def test_a_manifest_with_a_path_that_leads_out_is_refused(room: Room) -> None:
    room.put_manifest(files=[file("../../outside/victim", b"bad")])
    with pytest.raises(IntegrityError):
        room.load()
    room.assert_untouched()


def test_a_missing_manifest_is_noticed(room: Room) -> None:
    room.put(f"{KEY}/a", b"1")
    with pytest.raises(NotFound):
        room.load()
    room.assert_untouched()


@pytest.mark.parametrize("form", ["files", "tar"])
def test_what_was_uploaded_whole_and_never_committed_is_not_loaded(room: Room, form: str) -> None:
    """It failed: its files may be torn, and the manifest says of what was read that it is so."""
    room.put(f"{KEY}/a" if form == "files" else KEY, b"1")
    room.put_manifest(files=[file("a", b"1")])
    reference = layout.reference(
        TASK, name="mfchckpt", version=0, url=room.store.root, size=1, metadata={}, storage_format=form, latest=True
    )
    with pytest.raises(NotFound, match="never committed"):
        asyncio.run(restore.find_and_load(room.store, reference, str(room.destination), Config()))
    room.assert_untouched()


def test_a_commit_whose_copy_for_the_step_is_gone_is_loaded(room: Room) -> None:
    room.put(f"{KEY}/a", b"1")
    room.put_manifest(files=[file("a", b"1")])
    reference = layout.reference(
        TASK, name="mfchckpt", version=0, url=room.store.root, size=1, metadata={}, storage_format="files", latest=True
    )
    room.put(layout.parse_key(KEY).task_metadata_key(TASK.pathspec), json.dumps(reference).encode())
    assert asyncio.run(restore.find_and_load(room.store, reference, str(room.destination), Config())) == reference
    assert (room.destination / "a").read_bytes() == b"1"


def test_a_manifest_key_that_leads_elsewhere_is_not_followed(room: Room) -> None:
    """Metadata may name any file; ours is computed from the checkpoint's key."""
    room.put(f"{KEY}/a", b"1")
    room.put_manifest(files=[file("a", b"1")])
    room.load(manifest="../../../etc/passwd")
    assert (room.destination / "a").read_bytes() == b"1"


@pytest.mark.parametrize("key", ["..", "../../etc", KEY + "/../..", KEY.replace("/Flow/", "/../"), "/etc/passwd"])
def test_a_key_that_leads_out_is_refused(room: Room, key: str) -> None:
    with pytest.raises(UsageError):
        room.load(key=key)
    room.assert_untouched()


def test_a_checkpoint_without_a_manifest_is_loaded_by_listing(room: Room) -> None:
    room.put(f"{KEY}/a/b", b"theirs")
    room.load(manifest=None)
    assert (room.destination / "a/b").read_bytes() == b"theirs"


def test_a_checkpoint_without_manifest_and_files_is_not_found(room: Room) -> None:
    with pytest.raises(NotFound):
        room.load(manifest=None)
    room.assert_untouched()


def test_what_has_the_same_name_is_replaced_whatever_it_was(room: Room) -> None:
    (room.destination / "file-to-dir").write_text("old")
    (room.destination / "dir-to-file").mkdir()
    (room.destination / "dir-to-file/x").touch()
    (room.destination / "link-to-file").symlink_to(room.base / "outside/victim")
    (room.destination / "link-to-dir").symlink_to(room.base / "outside")
    (room.destination / "merged").mkdir()
    (room.destination / "merged/kept").write_text("kept")
    files = {
        name: b"new" for name in ("file-to-dir/a", "dir-to-file", "link-to-file", "link-to-dir/victim", "merged/new")
    }
    for name, data in files.items():
        room.put(f"{KEY}/{name}", data)
    room.put_manifest(files=[file(name, data) for name, data in files.items()])
    room.load()
    for name, data in files.items():
        assert (room.destination / name).read_bytes() == data
    assert (room.destination / "merged/kept").read_text() == "kept"
    assert (room.base / "outside/victim").read_text() == "untouched"


def test_a_loaded_file_never_shares_its_inode_with_the_store(room: Room) -> None:
    room.put(f"{KEY}/a", b"1")
    room.put_manifest(files=[file("a", b"1")])
    room.load()
    (room.destination / "a").write_bytes(b"rewritten")
    assert Path(room.store.root, KEY, "a").read_bytes() == b"1"


def test_a_destination_that_cannot_be_made_is_a_clear_error(room: Room) -> None:
    with pytest.raises(SnapshotError, match="Cannot load into"):
        asyncio.run(
            restore.load_from_store(
                room.store, {"key": KEY, "storage_format": "files"}, str(room.destination / "mine/sub"), Config()
            )
        )


# -- from the spool ----------------------------------------------------------------------------------------------------


def spooled(folder: Path, data: bytes, how: str) -> Admitted:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(data)
    status = (folder / "weights").stat()
    entry = FileEntry("weights", len(data), 0o640, how, status.st_ino, status.st_mtime_ns)
    return Admitted(
        "0.x.0", {"key": KEY}, Manifest([entry], [Directory("d", 0o750)], [Symlink("l", "weights")]), str(folder), "/x"
    )


@pytest.mark.parametrize("how", [COPY, LINK])
def test_a_snapshot_on_this_disk_is_loaded_as_a_copy(room: Room, how: str) -> None:
    item = spooled(room.base / "outside" / "snapshot", b"weights", how)
    restore.load_from_spool(item, str(room.destination), Config())
    assert (room.destination / "l").read_bytes() == b"weights"
    assert stat.S_IMODE((room.destination / "weights").stat().st_mode) == 0o640
    assert (room.destination / "weights").stat().st_ino != Path(item.file("weights")).stat().st_ino


def test_some_files_of_a_snapshot_arrive_alone(room: Room) -> None:
    item = spooled(room.base / "outside" / "snapshot", b"weights", LINK)
    restore.load_from_spool(item, str(room.destination), Config(), arrival=Arrival(files=["weights"]))
    assert tree(room.destination) == {"mine", "weights"}
    with pytest.raises(NotFound, match="The checkpoint has no file 'three'"):
        restore.load_from_spool(item, str(room.destination), Config(), arrival=Arrival(files=["three"]))


def test_a_torn_snapshot_is_never_handed_out(room: Room) -> None:
    item = spooled(room.base / "snapshot", b"weights", LINK)
    with open(item.file("weights"), "r+b") as trainers:
        trainers.write(b"W")
    with pytest.raises(IntegrityError, match="after the save"):
        restore.load_from_spool(item, str(room.destination), Config())
    assert tree(room.destination) == {"mine"}


@pytest.mark.parametrize("how", [COPY, PACKED])
def test_a_snapshot_that_was_released_meanwhile_says_so(room: Room, how: str) -> None:
    item = spooled(room.base / "snapshot", b"weights", how)
    Path(item.file("weights")).unlink()
    Path(item.data).rmdir()
    with pytest.raises(FileNotFoundError):
        restore.load_from_spool(item, str(room.destination), Config())
    assert tree(room.destination) == {"mine"}

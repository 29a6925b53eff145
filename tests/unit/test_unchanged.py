"""Which files are taken for unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from async_ckpt.manifest import COPY, LINK, FileEntry, Manifest
from async_ckpt.spool import unchanged
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.unchanged import (
    MIN_BYTES,
    RACY_NS,
    Fingerprint,
    StoredFile,
    StoredFiles,
    fingerprints,
)
from async_ckpt.stores.base import Stored
from async_ckpt.system.filesystems import kind_of, times_tell


def fingerprint(number: int, *, mtime_ns: int = 5, btime_ns: int = 5) -> Fingerprint:
    return Fingerprint(1, number, MIN_BYTES, mtime_ns, btime_ns)


def stored(key: str) -> StoredFile:
    return StoredFile(key, Stored([1]))


def test_the_newest_place_of_an_inode_wins() -> None:
    files = StoredFiles()
    files.add(fingerprint(1), stored("a"))
    files.add(fingerprint(1), stored("b"))
    assert files.find(fingerprint(1)) == stored("b")
    assert len(files) == 1


@pytest.mark.parametrize(
    "other", [fingerprint(1, mtime_ns=6), fingerprint(1, btime_ns=4), fingerprint(2), fingerprint(1)._replace(dev=2)]
)
def test_another_inode_is_not_found(other: Fingerprint) -> None:
    files = StoredFiles()
    files.add(fingerprint(1), stored("a"))
    assert files.find(other) is None


def test_a_file_that_was_written_to_replaces_what_was_known_of_it() -> None:
    files = StoredFiles()
    files.add(fingerprint(1), stored("a"))
    files.add(fingerprint(1, mtime_ns=6), stored("b"))
    assert files.find(fingerprint(1)) is None
    assert list(files) == [(fingerprint(1, mtime_ns=6), stored("b"))]


def test_only_the_last_are_remembered() -> None:
    files = StoredFiles(limit=3)
    for number in (0, 1, 2, 0, 3):
        files.add(fingerprint(number), stored(str(number)))
    assert [found.ino for found, _ in files] == [2, 0, 3]


def test_a_time_close_to_the_capture_proves_nothing() -> None:
    assert fingerprint(1).shows_writes_after(5 + RACY_NS)
    assert not fingerprint(1).shows_writes_after(5 + RACY_NS - 1)
    assert not fingerprint(1).shows_writes_after(0), "records of earlier versions do not say when"


def captured(folder: Path, *, length: int = MIN_BYTES, **fields: object) -> Admitted:
    data = folder / "data"
    data.mkdir()
    (data / "file").write_bytes(b"x" * length)
    status = (data / "file").stat()
    entry = FileEntry("file", length, 0o644, LINK, status.st_ino, status.st_mtime_ns)
    manifest = Manifest([entry._replace(**fields)])
    return Admitted("0.a.0", {"storage_format": "files"}, manifest, str(data), str(folder))


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "times_tell", lambda kind: True)


@pytest.mark.usefixtures("telling")
def test_a_link_that_is_still_the_trainers_file_can_be_recognized(tmp_path: Path) -> None:
    item = captured(tmp_path)
    assert fingerprints(item) == {"file": Fingerprint.of(item.file("file"))}


@pytest.mark.usefixtures("telling")
@pytest.mark.parametrize("fields", [{"how": COPY}, {"ino": 1}, {"mtime_ns": 1}, {"size": MIN_BYTES + 1}])
def test_what_is_not_or_no_longer_the_trainers_file_cannot(tmp_path: Path, fields: dict[str, object]) -> None:
    assert fingerprints(captured(tmp_path, **fields)) == {}  # type: ignore[arg-type]


@pytest.mark.usefixtures("telling")
def test_small_files_and_tars_cannot(tmp_path: Path) -> None:
    item = captured(tmp_path, length=MIN_BYTES - 1)
    assert fingerprints(item) == {}
    item.reference["storage_format"] = "tar"
    assert fingerprints(item) == {}


@pytest.mark.usefixtures("telling")
def test_a_time_before_birth_was_set_by_somebody_and_tells_nothing(tmp_path: Path) -> None:
    item = captured(tmp_path)
    os.utime(item.file("file"), ns=(10**18, 10**18))
    entry = item.manifest.files[0]._replace(mtime_ns=10**18)
    assert fingerprints(Admitted(item.id, item.reference, Manifest([entry]), item.data, item.saved_path)) == {}


def test_file_systems_in_memory_do_not_tell_of_writes() -> None:
    folder = "/dev/shm"
    if not os.access(folder, os.W_OK):
        pytest.skip(f"{folder} cannot be written to")
    assert not times_tell(kind_of(folder))


def test_what_is_gone_is_nobody(tmp_path: Path) -> None:
    assert Fingerprint.of(str(tmp_path / "gone")) is None
    assert not times_tell(kind_of(str(tmp_path / "gone")))
    (tmp_path / "link").symlink_to("gone")
    found = Fingerprint.of(str(tmp_path / "link"))
    assert found is None or found.ino == (tmp_path / "link").lstat().st_ino


def test_an_inode_is_what_stat_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    found, status = Fingerprint.of(str(path)), path.stat()
    if found is None:
        pytest.skip("this file system does not keep times of birth")
    assert found[:4] == (status.st_dev, status.st_ino, 3, status.st_mtime_ns)
    assert found.btime_ns <= found.mtime_ns

"""Where a spool is made: for this user alone, not in memory, and where an earlier attempt made it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import NotOurs, SpoolError
from async_ckpt.spool import place
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.filesystems import kind_of
from harness.common.log_lines import collected
from harness.files.filesystems import CannotMount, small_tmpfs
from harness.tasks.task import TASK

STORE = StoreSpec("local", "/store")
NAME = f"async-ckpt-{os.getuid()}"


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for ``/tmp``, with no setting."""
    monkeypatch.delenv("TMPDIR", raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def make(*bases: Path, said: list[str] | None = None) -> Spool:
    names = (NAME, f"{NAME}-1", f"{NAME}-2")
    with collected(said):
        return place.make([[str(base / name) for name in names] for base in bases], TASK, STORE)


def test_the_setting_comes_before_the_argument_and_the_systems_directories(usual: Path) -> None:
    both = place.bases("/argument", Config(spool_dir="/setting"))
    assert both == ["/setting", "/argument", str(usual), "/var/tmp", "/tmp"]
    assert place.bases("argument", Config())[0] == f"{os.getcwd()}/argument"
    assert place.bases(None, Config()) == [str(usual), "/var/tmp", "/tmp"]
    assert place.places(None, Config())[0][:2] == [f"{usual}/{NAME}", f"{usual}/{NAME}-1"]


def test_a_directory_in_memory_comes_last_unless_somebody_chose_it(
    usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "kind_of", lambda path: "tmpfs" if path == str(usual) else "ext4")
    assert place.bases(None, Config()) == ["/var/tmp", str(usual), "/tmp"]
    monkeypatch.setenv("TMPDIR", str(usual))
    assert place.bases(None, Config()) == [str(usual), "/var/tmp", "/tmp"]
    # Whoever names one that cannot be used, or none, has not chosen this one.
    for value in ("", str(usual / "vanished")):
        monkeypatch.setenv("TMPDIR", value)
        assert place.bases(None, Config()) == ["/var/tmp", str(usual), "/tmp"]


def test_the_home_directory_may_be_written_as_shells_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert place.bases("~", Config(spool_dir="~/spools"))[:2] == ["/home/somebody/spools", "/home/somebody"]


def test_the_type_of_a_file_system_is_known(tmp_path: Path) -> None:
    assert kind_of("/proc") == "0x9fa0", "one without a name here"
    assert kind_of(str(tmp_path / "not there")) == "unknown"
    try:
        with small_tmpfs(tmp_path, 1 << 20) as folder:
            (folder / "deep").mkdir()
            assert kind_of(str(folder / "deep")) == "tmpfs"
            with open(folder / "deep/file", "wb") as file:
                assert kind_of(file.fileno()) == "tmpfs"
    except CannotMount as error:
        pytest.skip(str(error))


def squat(path: Path, how: str) -> None:
    """Somebody else, or something else, has taken the name."""
    if how == "a link":
        (path.parent / "elsewhere").mkdir(exist_ok=True)
        path.symlink_to("elsewhere")
    elif os.getuid():
        pytest.skip("needs root, to give a directory away")
    else:
        path.mkdir(mode=0o777)
        os.chown(path, 65534, 65534)


@pytest.mark.parametrize("how", ["a link", "a directory of somebody else"])
def test_where_somebody_else_has_the_name_another_is_taken_said_once_and_found_again(tmp_path: Path, how: str) -> None:
    squat(tmp_path / NAME, how)
    said: list[str] = []
    spool = make(tmp_path, said=said)
    assert os.path.dirname(spool.directory) == f"{tmp_path}/{NAME}-1"
    (line,) = said
    assert "belongs to somebody else" in line
    assert str(tmp_path / NAME) in line
    assert make(tmp_path, said=said).directory == spool.directory
    assert len(said) == 1
    # Also when the name is free again.
    if how == "a link":
        (tmp_path / NAME).unlink()
    else:
        (tmp_path / NAME).rmdir()
    assert make(tmp_path).directory == spool.directory


def test_a_spool_that_somebody_else_has_prepared_is_never_taken_up(tmp_path: Path) -> None:
    prepared = make(tmp_path)
    if os.getuid():
        pytest.skip("needs root, to give a directory away")
    os.chown(prepared.directory, 65534, 65534)
    assert make(tmp_path).directory != prepared.directory
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other")
    os.chown(os.path.dirname(other.directory), 65534, 65534)
    assert make(tmp_path / "other").directory != other.directory


def test_a_place_that_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    spool = make(tmp_path / "file" / "below", tmp_path / "good", said=said)
    assert spool.directory.startswith(f"{tmp_path}/good/")
    (line,) = said
    assert "Not a directory" in line


def test_a_full_disk_is_passed_over(tmp_path: Path) -> None:
    try:
        with small_tmpfs(tmp_path, 64 << 10) as full:
            with contextlib.suppress(OSError), open(full / "filler", "wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass
            said: list[str] = []
            (tmp_path / "good").mkdir()
            spool = make(full, tmp_path / "good", said=said)
            assert spool.directory.startswith(f"{tmp_path}/good/")
            assert "No space left" in said[0]
    except CannotMount as error:
        pytest.skip(str(error))


def test_where_there_is_no_place_each_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "two").mkdir()
    for name in (NAME, f"{NAME}-1", f"{NAME}-2"):
        squat(tmp_path / "two" / name, "a link")
    with pytest.raises(SpoolError) as caught:
        make(tmp_path / "one", tmp_path / "two")
    assert f"{tmp_path}/one/{NAME}" in str(caught.value)
    assert f"{tmp_path}/two/{NAME}-2" in str(caught.value)
    assert "METAFLOW_ASYNC_CKPT_SPOOL_DIR" in caught.value.hint


def test_a_spool_that_an_earlier_attempt_left_comes_first_wherever_it_is(tmp_path: Path) -> None:
    earlier = make(tmp_path / "old")
    assert make(tmp_path / "new", tmp_path / "old").directory == earlier.directory
    # Also where something has removed its identity, and not its records.
    Path(earlier.path("ready", "0.mfchckpt.0.json")).touch()
    Path(earlier.path("spool.json")).unlink()
    assert make(tmp_path / "new", tmp_path / "old").directory == earlier.directory
    # An empty directory is none.
    Path(earlier.path("ready", "0.mfchckpt.0.json")).unlink()
    Path(earlier.path("spool.json")).unlink()
    assert make(tmp_path / "new", tmp_path / "old").directory.startswith(f"{tmp_path}/new/")


def test_a_spool_of_somebody_else_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(NotOurs, match="belongs to somebody else"):
        Spool.open(spool.directory)

"""What no snapshot strategy can capture is refused by name, and nothing is left over."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt import capture
from async_ckpt.capture import origin
from async_ckpt.capture.origin import give_back
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, UsageError

from ..support.agents import content
from .snapshot_suite import BIG, OnFilesystem, Place, tree


def test_a_path_that_does_not_exist_is_named(place: Place) -> None:
    error = place.refused(place.source / "missing")
    assert "missing" in str(error)
    assert "does not exist" in str(error)


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_what_is_no_file_is_refused_by_name(place: Place, kind: str) -> None:
    # Captured before: a linked one, and more than fits into one write of small ones.
    (place.source / "before").write_bytes(content(15, BIG))
    for number in range(60):
        (place.source / f"small-{number}").write_bytes(content(number, 20_000))
    folder = place.source / "sub"
    folder.mkdir()
    if kind == "FIFO":
        os.mkfifo(folder / "odd")
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            before = os.getcwd()
            os.chdir(folder)  # the path of a socket must be short
            try:
                sock.bind("odd")
            finally:
                os.chdir(before)
    error = place.refused()
    assert error.where == str(folder / "odd")
    assert kind in str(error)
    assert "Keep it outside" in error.hint


def test_a_fifo_alone_is_refused_without_waiting_for_its_writer(place: Place) -> None:
    os.mkfifo(place.source / "pipe")
    assert "FIFO" in str(place.refused(place.source / "pipe"))


@pytest.mark.parametrize("size", [100, BIG])
def test_a_file_that_vanishes_during_the_capture_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (place.source / "file").write_bytes(content(16, size))
    if place.strategy == "move":
        pytest.skip("a rename takes what is there, in one step")
    # Opening and linking come after the listing: the file is gone in between.
    monkeypatch.setattr("async_ckpt.capture.tree.walk", _vanishing(place.source / "file"))
    with pytest.raises(SnapshotError, match="vanished") as caught:
        place.capture()
    assert str(place.source / "file") in str(caught.value)
    assert os.listdir(place.source.parent / "snapshots") == []


def _vanishing(victim: Path) -> object:
    from async_ckpt.capture import tree

    walk = tree.walk

    def walking(path: str, config: Config) -> Iterator[tree.Item]:
        for item in walk(path, config):
            if item.full == str(victim):
                victim.unlink()
            yield item

    return walking


_AS_NOBODY = """
import os, sys
from async_ckpt import capture
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    capture.capture(sys.argv[1], sys.argv[2], sys.argv[3], guarded=True, config=Config(), lease_budget=10)
except SnapshotError as error:
    print(error.where)
    print(error)
print("left", os.path.exists(sys.argv[2]))
"""


def _capture_as_nobody(place: Place) -> str:
    """What a capture says when an ordinary user makes it, into ``snapshots/x``."""
    snapshots = place.source.parent / "snapshots"
    os.chown(snapshots, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(place.source), str(snapshots / "x"), place.strategy],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("size", [100, BIG])
def test_a_link_to_an_unreadable_file_is_named_for_an_ordinary_user(place: Place, size: int) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    secret, link = place.source.parent / "secret", place.source / "model"
    secret.write_bytes(content(17, size))
    secret.chmod(0o600)
    link.symlink_to(secret)
    if place.strategy == "move":
        assert "leads out of it" in str(place.refused())
        return
    where, message, *_, left = _capture_as_nobody(place).splitlines()
    assert where == f"{link} -> {secret}"
    assert str(link) in message
    assert "ermi" in message
    assert left == "left False"


@pytest.mark.parametrize("size", [100, BIG])
def test_an_unreadable_file_is_named_for_an_ordinary_user(place: Place, size: int) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    if place.strategy == "move":
        pytest.skip("a rename reads nothing")
    file = place.source / "secret"
    file.write_bytes(content(17, size))
    file.chmod(0o600)
    where, message, *_, left = _capture_as_nobody(place).splitlines()
    assert where == str(file)
    assert "ermi" in message
    assert left == "left False"
    assert file.read_bytes() == content(17, size)


def test_an_ordinary_user_captures_files_of_somebody_else_it_may_read(place: Place) -> None:
    """Neither link (protected_hardlinks) nor lease can be had: they are copied, or refused with the way out."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    if place.strategy == "move":
        pytest.skip("a rename is a matter of the directory")
    (place.source / "shared").write_bytes(content(18, BIG))
    said = _capture_as_nobody(place)
    if place.strategy == "hardlink":
        assert "snapshot='auto'" in said
        return
    assert said == "left True\n"
    assert (place.source.parent / "snapshots/x/shared").read_bytes() == content(18, BIG)


def test_what_was_captured_can_be_given_back(place: Place) -> None:
    (place.source / "file").write_bytes(content(19, BIG))
    before = tree(place.source)
    captured, target = place.capture()
    captured.drop(str(target))
    captured.leases.clear()
    assert tree(place.source) == before
    assert not target.exists()


def test_a_file_that_was_moved_can_be_given_back(tmp_path: Path) -> None:
    place = Place(tmp_path, "move")
    file = place.source / "model"
    file.write_bytes(b"all I have")
    captured, target = place.capture(file)
    assert not file.exists()
    captured.drop(str(target))
    assert file.read_bytes() == b"all I have"
    assert not target.exists()


def moved(tmp_path: Path, kind: str) -> tuple[Path, capture.Captured, Path]:
    """What was moved, and is not yet admitted: (its old path, the capture, where its data is)."""
    place = Place(tmp_path, "move")
    path = place.source / "model"
    if kind == "file":
        path.write_text("old")
    else:
        path.mkdir()
        (path / "weights").write_text("old")
    captured, target = place.capture(path)
    assert not path.exists()
    return path, captured, target


def read(path: Path) -> str:
    return (path / "weights" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("taken_by", ["file", "folder", "link"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_moved_is_never_put_back_over_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, taken_by: str, links: bool
) -> None:
    path, captured, target = moved(tmp_path, kind)
    if taken_by == "folder":
        path.mkdir()
        (path / "weights").write_text("new")
    else:
        (tmp_path / "new").write_text("new")
        path.symlink_to(tmp_path / "new") if taken_by == "link" else (tmp_path / "new").rename(path)
    if not links:
        monkeypatch.setattr(os, "link", _no_link)
    with pytest.raises(SnapshotError, match=re.escape(f"{path}.saved-")):
        captured.drop(str(target))
    assert read(path) == "new"
    (beside,) = path.parent.glob("model.saved-*")
    assert read(beside) == "old"
    assert os.listdir(target.parent) == []


def _no_link(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_moved_goes_back_whoever_is_killed_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, links: bool
) -> None:
    path, _, target = moved(tmp_path, kind)
    if kind == "folder":
        path.mkdir()  # Somebody made a new one, and nothing is in it.
    elif links:
        os.link(target / "model", path)  # Killed before it had only one name.
    if not links:
        monkeypatch.setattr(os, "link", _no_link)
    assert give_back(str(target)) == str(path)
    assert read(path) == "old"
    assert os.listdir(path.parent) == ["model"]
    assert os.listdir(target.parent) == []
    origin.note_origin(str(target), str(path), is_folder=kind == "folder")  # Killed before it was moved at all.
    assert give_back(str(target)) is None
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_put_back_stays_where_it_is_and_the_error_says_where(tmp_path: Path, kind: str) -> None:
    path, captured, target = moved(tmp_path, kind)
    path.parent.rmdir()
    with pytest.raises(SnapshotError, match=f"{re.escape(str(target))}.*stays in the spool"):
        captured.drop(str(target))
    path.parent.mkdir()
    assert give_back(str(target)) == str(path)
    assert read(path) == "old"


def test_what_holds_snapshots_of_its_own_files_is_not_moved_before_they_are_in_the_store(tmp_path: Path) -> None:
    place = Place(tmp_path, "move")
    waiting = place.source / "sub" / f".async_ckpt-{os.getuid()}" / "spool-1" / "1-ab"
    waiting.mkdir(parents=True)
    error = place.refused()
    assert error.where == str(waiting.parents[1])
    assert "snapshot='auto'" in error.hint
    waiting.rmdir()
    captured, _ = place.capture()
    assert [(folder.path, folder.mode) for folder in captured.manifest.dirs] == [("sub", 0o755)]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_has_a_mount_in_it_is_not_moved_as_that_would_be_emptied(tmp_path: Path, kind: str) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    place = Place(tmp_path, "move")
    theirs, inside = tmp_path / "theirs", place.source / "inside"
    if kind == "folder":
        theirs.mkdir()
        inside.mkdir()
        (theirs / "data").write_text("kept")
    else:
        theirs.write_text("kept")
        inside.touch()
    subprocess.run(["mount", "--bind", theirs, inside], check=True)
    try:
        error = place.refused()
    finally:
        subprocess.run(["umount", inside], check=True)
    assert "something is mounted in it" in str(error)
    assert error.where == str(inside)


def test_move_to_another_file_system_is_refused_with_the_way_out(tmp_path: Path, on_filesystem: OnFilesystem) -> None:
    elsewhere = on_filesystem("tmpfs")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary directory is on the same tmpfs")
    (tmp_path / "model").write_bytes(b"weights")
    for path in (tmp_path / "model", tmp_path):
        with pytest.raises(SnapshotError, match="snapshot='auto'"):
            capture.capture(str(path), str(elsewhere / "x"), "move", guarded=False, config=Config(), lease_budget=0)
        assert os.listdir(elsewhere) == []
    assert (tmp_path / "model").read_bytes() == b"weights"


def test_hardlink_to_another_file_system_is_refused_with_the_way_out(
    tmp_path: Path, on_filesystem: OnFilesystem
) -> None:
    elsewhere = on_filesystem("tmpfs")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary directory is on the same tmpfs")
    (tmp_path / "model").write_bytes(b"weights")
    with pytest.raises(SnapshotError, match="snapshot='auto'"):
        capture.capture(
            str(tmp_path / "model"), str(elsewhere / "x"), "hardlink", guarded=True, config=Config(), lease_budget=9
        )
    assert os.listdir(elsewhere) == []


def test_reflink_where_files_cannot_be_cloned_is_refused_with_the_way_out(on_filesystem: OnFilesystem) -> None:
    place = Place(on_filesystem("tmpfs"), "reflink")
    (place.source / "model").write_bytes(b"weights")
    assert "snapshot='auto'" in str(place.refused())


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="auto, hardlink, reflink, copy, move"):
        capture.check_strategy("magic")


def test_hardlink_without_an_agent_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="uploader='process'"):
        capture.check_strategy("hardlink", leases=False)

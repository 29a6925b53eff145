"""What no snapshot strategy can capture is refused by name, and nothing is left over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt import capture
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, UsageError
from harness.tasks.task import content

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
    capture.capture(sys.argv[1], sys.argv[2], sys.argv[3], Config(), lease_budget=10)
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
    where, message, *_, left = _capture_as_nobody(place).splitlines()
    assert where == f"{link} -> {secret}"
    assert str(link) in message
    assert "ermi" in message
    assert left == "left False"


@pytest.mark.parametrize("size", [100, BIG])
def test_an_unreadable_file_is_named_for_an_ordinary_user(place: Place, size: int) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
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
    (place.source / "shared").write_bytes(content(18, BIG))
    said = _capture_as_nobody(place)
    if place.strategy == "hardlink":
        assert "snapshot='auto'" in said
        return
    assert said == "left True\n"
    assert (place.source.parent / "snapshots/x/shared").read_bytes() == content(18, BIG)


def test_a_capture_that_is_dropped_leaves_nothing(place: Place) -> None:
    (place.source / "file").write_bytes(content(19, BIG))
    before = tree(place.source)
    captured, target = place.capture()
    captured.drop(str(target))
    captured.leases.clear()
    assert tree(place.source) == before
    assert not target.exists()


def test_hardlink_to_another_file_system_is_refused_with_the_way_out(
    tmp_path: Path, on_filesystem: OnFilesystem
) -> None:
    elsewhere = on_filesystem("tmpfs")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary directory is on the same tmpfs")
    (tmp_path / "model").write_bytes(b"weights")
    with pytest.raises(SnapshotError, match="snapshot='auto'"):
        capture.capture(str(tmp_path / "model"), str(elsewhere / "x"), "hardlink", Config(), lease_budget=9)
    assert os.listdir(elsewhere) == []


def test_reflink_where_files_cannot_be_cloned_is_refused_with_the_way_out(on_filesystem: OnFilesystem) -> None:
    place = Place(on_filesystem("tmpfs"), "reflink")
    (place.source / "model").write_bytes(b"weights")
    assert "snapshot='auto'" in str(place.refused())


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="auto, hardlink, reflink, copy"):
        capture.check_strategy("magic")


def test_move_which_was_dropped_is_refused_with_what_does_the_same() -> None:
    with pytest.raises(UsageError, match=r"save\(\) and then shutil\.rmtree\(\) does the same and loses nothing"):
        capture.check_strategy("move")


def test_hardlink_without_an_agent_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="uploader='process'"):
        capture.check_strategy("hardlink", leases=False)

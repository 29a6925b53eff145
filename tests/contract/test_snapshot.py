"""What every snapshot strategy promises, on every file system that can be had here."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt import snapshot
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, UsageError
from async_ckpt.manifest import LINK
from async_ckpt.snapshot import Captured, lease
from async_ckpt.spool.spool import Admitted, torn_file

from ..support.agents import content
from ..support.filesystems import CLONING, FILESYSTEMS

OnFilesystem = Callable[[str], Path]
BIG = 300 << 10
ODD_NAMES = (
    "plain", "with space", "über-模型-🎉", "-rf", "line\nbreak", "back\\slash", "%s{}$(x)", "a" * 255, ".hidden", b"bytes-\xff\xfe",
)  # fmt: skip


class Place:
    """A directory to save, and where snapshots of it go; ``capture`` is the strategy under test."""

    def __init__(self, base: Path, strategy: str) -> None:
        self.source, self._snapshots = base / "source", base / "snapshots"
        self.strategy = strategy
        self.source.mkdir()
        self._snapshots.mkdir()
        self._captured: list[tuple[Captured, str]] = []

    def capture(self, path: Path | None = None, *, lease_budget: int = 1000) -> tuple[Captured, Path]:
        target = self._snapshots / str(len(self._captured))
        # Breaks are signalled to process 1, which does not care about them: nobody here may be killed by one.
        captured = snapshot.capture(
            str(path or self.source), str(target), self.strategy,
            owner_pid=1, config=Config(), lease_budget=lease_budget,
        )  # fmt: skip
        self._captured.append((captured, str(target)))
        return captured, target

    def refused(self, path: Path | None = None) -> SnapshotError:
        """The capture fails, leaves nothing behind, and the source is as it was."""
        before = tree(self.source) if os.path.isdir(self.source) else None
        with pytest.raises(SnapshotError) as caught:
            self.capture(path)
        assert os.listdir(self._snapshots) == []
        if before is not None:
            assert tree(self.source) == before
        return caught.value

    def let_go(self) -> None:
        for captured, _ in self._captured:
            for fd in captured.leases.values():
                os.close(fd)


@pytest.fixture(params=[(kind, name) for kind in FILESYSTEMS for name in snapshot.STRATEGIES], ids="-".join)
def place(request: pytest.FixtureRequest, on_filesystem: OnFilesystem) -> Iterator[Place]:
    kind, strategy = request.param
    base = on_filesystem(kind)
    if strategy == "reflink" and not _can_clone(base):
        assert kind not in CLONING
        pytest.skip(f"the file system under {kind} cannot clone files")
    made = Place(base, strategy)
    yield made
    made.let_go()


def _can_clone(folder: Path) -> bool:
    from async_ckpt.files import clone

    with open(folder / "from", "wb") as source, open(folder / "to", "wb") as target:
        source.write(b"x" * 4096)
        source.flush()
        with open(folder / "from", "rb") as readable:
            done = clone(readable.fileno(), target.fileno())
    (folder / "from").unlink()
    (folder / "to").unlink()
    return done


def tree(folder: Path) -> dict[str, object]:
    """Everything in a directory: bytes of files, targets of links, kinds of the rest, with modes."""
    found: dict[str, object] = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            status = os.lstat(path)
            relative = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", os.fsdecode(os.readlink(path)))
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    found[relative] = (stat.S_IMODE(status.st_mode), file.read())
            else:
                found[relative] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode))
    return found


def captured_tree(captured: Captured, target: Path) -> dict[str, object]:
    """What a reader gets: bytes from the snapshot, everything else from the manifest."""
    manifest, found = captured.manifest, {}
    for entry in manifest.files:
        data = (target / entry.path).read_bytes()
        assert len(data) == entry.size
        found[entry.path] = (entry.mode, data)
    found.update({path: (stat.S_IFDIR, mode) for path, mode in manifest.dirs})
    found.update({path: ("link", link) for path, link in manifest.links})
    return found


def test_a_snapshot_holds_content_modes_links_and_empty_directories(place: Place) -> None:
    for name in ODD_NAMES:
        full = os.path.join(os.fsencode(place.source), os.fsencode(name))
        with open(full, "wb") as file:
            file.write(os.fsencode(name))
    (place.source / "big").write_bytes(content(1, BIG))
    (place.source / "empty").touch()
    (place.source / "deep/er/est").mkdir(parents=True)
    (place.source / "deep/er/est/weights").write_bytes(content(2, BIG + 5))
    (place.source / "deep/script").write_text("#!/bin/sh\n")
    (place.source / "deep/script").chmod(0o750)
    (place.source / "read-only").write_bytes(content(3, BIG))
    (place.source / "read-only").chmod(0o400)
    (place.source / "nothing/in/here").mkdir(parents=True)
    (place.source / "nothing").chmod(0o700)
    (place.source / "link").symlink_to("deep/script")
    (place.source / "link-to-dir").symlink_to("deep")
    (place.source / "dangling").symlink_to("/nowhere/at all")
    before = tree(place.source)
    captured, target = place.capture()
    assert captured_tree(captured, target) == before
    if place.strategy != "move":
        assert tree(place.source) == before
    assert all(entry.path in captured.leases for entry in captured.manifest.files if entry.how == LINK)


def test_directories_stand_before_what_is_in_them(place: Place) -> None:
    (place.source / "a/b/c").mkdir(parents=True)
    (place.source / "a/b/c/file").touch()
    captured, _ = place.capture()
    assert [path for path, _ in captured.manifest.dirs] == ["a", "a/b", "a/b/c"]


def test_a_single_file_is_a_snapshot_of_one_entry(place: Place) -> None:
    file = place.source / "model.pt"
    file.write_bytes(content(4, BIG))
    captured, target = place.capture(file)
    assert [entry.path for entry in captured.manifest.files] == ["model.pt"]
    assert (target / "model.pt").read_bytes() == content(4, BIG)


def test_an_empty_directory_is_a_snapshot_of_nothing(place: Place) -> None:
    captured, target = place.capture()
    assert captured_tree(captured, target) == {}
    assert target.is_dir()


def test_a_symbolic_link_to_a_directory_is_followed(place: Place) -> None:
    (place.source / "file").write_bytes(content(5, BIG))
    link = place.source.parent / "latest"
    link.symlink_to(place.source)
    captured, target = place.capture(link)
    assert (target / "file").read_bytes() == content(5, BIG)
    assert [entry.path for entry in captured.manifest.files] == ["file"]


@pytest.mark.parametrize("size", [10, BIG])
def test_a_symbolic_link_to_a_file_is_followed(place: Place, size: int) -> None:
    (place.source / "step-7.pt").write_bytes(content(6, size))
    link = place.source.parent / "latest.pt"
    link.symlink_to("source/step-7.pt")
    captured, target = place.capture(link)
    (entry,) = captured.manifest.files
    assert (target / entry.path).read_bytes() == content(6, size)
    assert not (target / entry.path).is_symlink()


def test_names_of_one_inode_are_captured_each(place: Place) -> None:
    (place.source / "one").write_bytes(content(7, BIG))
    os.link(place.source / "one", place.source / "two")
    captured, target = place.capture()
    assert sorted(entry.path for entry in captured.manifest.files) == ["one", "two"]
    assert (target / "one").read_bytes() == (target / "two").read_bytes() == content(7, BIG)


def test_replacing_a_file_by_rename_leaves_the_snapshot_alone(place: Place) -> None:
    if place.strategy == "move":
        pytest.skip("what was moved cannot be replaced")
    (place.source / "file").write_bytes(content(8, BIG))
    captured, target = place.capture()
    (place.source / "new").write_bytes(content(9, BIG))
    os.replace(place.source / "new", place.source / "file")
    assert captured_tree(captured, target)["file"][1] == content(8, BIG)  # type: ignore[index]


def test_removing_the_original_leaves_the_snapshot_alone(place: Place) -> None:
    (place.source / "file").write_bytes(content(10, BIG))
    captured, target = place.capture()
    if place.strategy != "move":
        (place.source / "file").unlink()
    assert captured_tree(captured, target)["file"][1] == content(10, BIG)  # type: ignore[index]


def test_a_file_that_is_open_for_writing_is_captured_as_it_is_now(place: Place) -> None:
    """No lease can be had for it. (``move`` asks its user never to touch it again.)"""
    if place.strategy == "move":
        pytest.skip("what was moved must not be written to")
    with open(place.source / "log", "wb", buffering=0) as log:
        log.write(content(11, BIG))
        captured, target = place.capture()
        log.seek(0)
        log.write(content(12, BIG))
    assert captured_tree(captured, target)["log"][1] == content(11, BIG)  # type: ignore[index]


def test_files_beyond_the_lease_budget_do_not_share_the_trainers_inode(place: Place) -> None:
    for number in range(5):
        (place.source / str(number)).write_bytes(content(number, BIG))
    captured, target = place.capture(lease_budget=2)
    assert len(captured.leases) <= 2
    for entry in captured.manifest.files:
        source = place.source / entry.path
        if entry.path not in captured.leases and source.exists():
            assert (target / entry.path).stat().st_ino != source.stat().st_ino


def test_a_writer_to_a_leased_file_is_held_until_the_lease_is_let_go(place: Place) -> None:
    (place.source / "file").write_bytes(content(13, BIG))
    captured, target = place.capture()
    if not captured.leases:
        pytest.skip(f"{place.strategy} takes no lease")
    fd = captured.leases["file"]
    with pytest.raises(BlockingIOError):
        os.open(place.source / "file", os.O_WRONLY | os.O_NONBLOCK)
    assert lease.is_breaking(fd)
    entry = captured.manifest.files[0]
    lease.make_private(str(target / "file"), fd, entry.size, entry.mtime_ns)
    lease.release(fd)
    with open(place.source / "file", "wb") as file:
        file.write(b"new")
    assert (target / "file").read_bytes() == content(13, BIG)
    assert torn_file(Admitted("0.x.0", {}, captured.manifest, str(target), ""), ()) is None


def test_a_write_that_no_lease_held_off_is_seen(place: Place) -> None:
    (place.source / "file").write_bytes(content(14, BIG))
    captured, target = place.capture()
    item = Admitted("0.x.0", {}, captured.manifest, str(target), "")
    assert torn_file(item, ()) is None
    if not captured.leases:
        pytest.skip(f"{place.strategy} shares nothing with the trainer")
    os.close(captured.leases.pop("file"))
    with open(place.source / "file", "r+b") as file:
        file.write(b"torn")
    assert torn_file(item, ()) == "file"


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_named(place: Place) -> None:
    error = place.refused(place.source / "missing")
    assert "missing" in str(error)
    assert "does not exist" in str(error)


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_what_is_no_file_is_refused_by_name(place: Place, kind: str) -> None:
    (place.source / "before").write_bytes(content(15, BIG))
    folder = place.source / "sub"
    folder.mkdir()
    if kind == "FIFO":
        os.mkfifo(folder / "odd")
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            os.chdir(folder)  # the path of a socket must be short
            try:
                sock.bind("odd")
            finally:
                os.chdir("/")
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
    monkeypatch.setattr("async_ckpt.snapshot.base.walk", _vanishing(place.source / "file"))
    with pytest.raises(SnapshotError, match="vanished") as caught:
        place.capture()
    assert str(place.source / "file") in str(caught.value)
    assert os.listdir(place.source.parent / "snapshots") == []


def _vanishing(victim: Path) -> object:
    from async_ckpt.snapshot import base

    walk = base.walk

    def walking(path: str) -> Iterator[base.Item]:
        for item in walk(path):
            if item.full == str(victim):
                victim.unlink()
            yield item

    return walking


_AS_NOBODY = """
import os, sys
from async_ckpt import snapshot
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    snapshot.capture(sys.argv[1], sys.argv[2], sys.argv[3], owner_pid=os.getpid(), config=Config(), lease_budget=10)
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
    """Neither a link (protected_hardlinks) nor a lease can be had for them: they are copied, or refused with the way out."""
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


def test_move_to_another_file_system_is_refused_with_the_way_out(tmp_path: Path, on_filesystem: OnFilesystem) -> None:
    elsewhere = on_filesystem("tmpfs")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary directory is on the same tmpfs")
    (tmp_path / "model").write_bytes(b"weights")
    for path in (tmp_path / "model", tmp_path):
        with pytest.raises(SnapshotError, match="snapshot='auto'"):
            snapshot.capture(str(path), str(elsewhere / "x"), "move", owner_pid=None, config=Config(), lease_budget=0)
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
        snapshot.capture(
            str(tmp_path / "model"), str(elsewhere / "x"), "hardlink", owner_pid=1, config=Config(), lease_budget=9
        )
    assert os.listdir(elsewhere) == []


def test_reflink_where_files_cannot_be_cloned_is_refused_with_the_way_out(on_filesystem: OnFilesystem) -> None:
    place = Place(on_filesystem("tmpfs"), "reflink")
    (place.source / "model").write_bytes(b"weights")
    assert "snapshot='auto'" in str(place.refused())


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="auto, hardlink, reflink, copy, move"):
        snapshot.check_strategy("magic")


def test_hardlink_without_an_agent_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="uploader='process'"):
        snapshot.check_strategy("hardlink", leases=False)

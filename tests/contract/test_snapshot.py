"""What every snapshot strategy promises, on every file system that can be had here."""

from __future__ import annotations

import os

import pytest

from async_ckpt.capture import lease
from async_ckpt.capture.private import make_private
from async_ckpt.manifest import LINK
from async_ckpt.spool.records import Admitted, torn_file
from harness.tasks.task import content

from .snapshot_suite import BIG, Place, captured_tree, read, tree

ODD_NAMES = (
    "plain", "with space", "über-模型-🎉", "-rf", "line\nbreak", "back\\slash", "%s{}$(x)", "a" * 255, ".hidden",
    b"bytes-\xff\xfe",
)  # fmt: skip


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
    before = tree(place.source)
    captured, target = place.capture()
    assert captured_tree(captured, target) == before
    assert torn_file(Admitted("0.x.0", {}, captured.manifest, str(target), ""), ()) is None
    assert tree(place.source) == before
    assert all(entry.path in captured.leases for entry in captured.manifest.files if entry.how == LINK)


def test_modification_times_of_files_and_directories_are_kept(place: Place) -> None:
    (place.source / "a/b").mkdir(parents=True)
    for number, (name, size) in enumerate({"small": 9, "a/big": BIG, "a/b/empty": 0}.items()):
        (place.source / name).write_bytes(content(number, size))
    expected = {name: 1_000_000_000_123_456_789 + number for number, name in enumerate(["small", "a/big", "a/b/empty"])}
    expected |= {"a": 999_999_999_987_654_321, "a/b": -1_000_000_001}
    for name, mtime_ns in sorted(expected.items(), reverse=True):
        os.utime(place.source / name, ns=(mtime_ns, mtime_ns))
    on_disk = {name: os.stat(place.source / name).st_mtime_ns for name in expected}  # As exactly as it can be here.
    manifest = place.capture()[0].manifest
    assert {item.path: item.mtime_ns for item in (*manifest.files, *manifest.dirs)} == on_disk


def test_directories_stand_before_what_is_in_them(place: Place) -> None:
    (place.source / "a/b/c").mkdir(parents=True)
    (place.source / "a/b/c/file").touch()
    captured, _ = place.capture()
    assert [path for path, _, _ in captured.manifest.dirs] == ["a", "a/b", "a/b/c"]


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
    assert torn_file(Admitted("0.x.0", {}, captured.manifest, str(target), ""), ()) is None


@pytest.mark.parametrize("names", [["_SUCCESS"], ["a", "b"]])
def test_files_without_a_byte_are_captured_whole(place: Place, names: list[str]) -> None:
    for name in names:
        (place.source / name).touch()
    captured, target = place.capture()
    assert [read(captured, target, name) for name in names] == [b""] * len(names)
    assert torn_file(Admitted("0.x.0", {}, captured.manifest, str(target), ""), ()) is None


def test_a_thousand_small_files_keep_their_own_content(place: Place) -> None:
    for number in range(1000):
        (place.source / str(number)).write_bytes(content(number, number * 5))
    before = tree(place.source)
    captured, target = place.capture()
    assert captured_tree(captured, target) == before
    assert torn_file(Admitted("0.x.0", {}, captured.manifest, str(target), ""), ()) is None


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
    assert read(captured, target, entry.path) == content(6, size)
    assert not (target / entry.path).is_symlink()


def test_names_of_one_inode_are_captured_each(place: Place) -> None:
    (place.source / "one").write_bytes(content(7, BIG))
    os.link(place.source / "one", place.source / "two")
    captured, target = place.capture()
    assert sorted(entry.path for entry in captured.manifest.files) == ["one", "two"]
    assert (target / "one").read_bytes() == (target / "two").read_bytes() == content(7, BIG)


def test_replacing_a_file_by_rename_leaves_the_snapshot_alone(place: Place) -> None:
    (place.source / "file").write_bytes(content(8, BIG))
    captured, target = place.capture()
    (place.source / "new").write_bytes(content(9, BIG))
    os.replace(place.source / "new", place.source / "file")
    assert captured_tree(captured, target)["file"][1] == content(8, BIG)  # type: ignore[index]


def test_removing_the_original_leaves_the_snapshot_alone(place: Place) -> None:
    (place.source / "file").write_bytes(content(10, BIG))
    captured, target = place.capture()
    (place.source / "file").unlink()
    assert captured_tree(captured, target)["file"][1] == content(10, BIG)  # type: ignore[index]


def test_a_file_that_is_open_for_writing_is_captured_as_it_is_now(place: Place) -> None:
    """No lease can be had for it."""
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
    make_private(str(target / "file"), fd, entry.size, entry.mtime_ns)
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

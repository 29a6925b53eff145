"""A snapshot is of one moment, whatever is written while it is captured."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from async_ckpt.capture import open_file, tree
from async_ckpt.capture.open_file import OpenFile
from async_ckpt.capture.strategy import Strategy
from async_ckpt.config import Config
from async_ckpt.errors import MissingPathError, SnapshotError
from async_ckpt.manifest import LINK, FileEntry
from harness.files.filesystems import LAYERED, SECONDS, CannotMount, twice, why_not
from harness.files.generations import Mapping

from .snapshot_suite import BIG, OnFilesystem, captured_tree, read

SMALL = 100
PLACES = ("disk", "tmpfs", SECONDS, *LAYERED)
CONFIG = Config(capture_tries=5)


class Between(Strategy):
    """As ``auto``; and at chosen points of the capture something happens: after the n-th file, counted from 1."""

    def __init__(self, target: Path, events: dict[int, Callable[[], object]]) -> None:
        super().__init__("auto", str(target), Config(), lease_budget=100)
        self._events, self.captured = events, list[str]()

    def capture_file(self, file: OpenFile) -> FileEntry:
        entry = super().capture_file(file)
        self.captured.append(file.path)
        self._events.pop(len(self.captured), lambda: None)()
        return entry


def capture(
    source: Path, events: dict[int, Callable[[], object]], config: Config = CONFIG
) -> tuple[dict[str, Any], list[str]]:
    """What a reader gets of a snapshot, and which files were captured, in this order."""
    target = source.parent / "snapshot"
    strategy = Between(target, events)
    captured = tree.capture_tree(str(source), str(target), strategy, config)
    try:
        return captured_tree(captured, target), strategy.captured
    finally:
        for fd in captured.leases.values():
            os.close(fd)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("kept_open", [True, False])
@pytest.mark.parametrize("size", [SMALL, BIG])
@pytest.mark.parametrize("kind", PLACES)
def test_files_that_belong_together_are_of_one_moment(
    on_filesystem: OnFilesystem, monkeypatch: pytest.MonkeyPatch, kind: str, size: int, kept_open: bool
) -> None:
    if not kept_open:  # There are more files than may be open.
        monkeypatch.setattr(tree, "_MAX_OPEN", 0)
    source = on_filesystem(kind) / "source"
    source.mkdir()
    names = ["a", "b"]
    with contextlib.ExitStack() as stack:
        # Open for writing all the time: no lease can be had, and both are copied.
        held = [stack.enter_context(open(source / name, "w+b", buffering=0)) for name in names]
        for file in held:
            file.write(b"old" * size)

        def both() -> None:
            for file in held:
                os.pwrite(file.fileno(), b"new" * size, 0)

        found, _ = capture(source, {1: both})
        assert {name: found[name][1] for name in names} == dict.fromkeys(names, b"new" * size)


@pytest.mark.parametrize("kind", PLACES)
def test_what_was_empty_before_and_after_was_not_so_all_the_time(on_filesystem: OnFilesystem, kind: str) -> None:
    """Its content is the same when it is looked at again; only its time tells."""
    source = on_filesystem(kind) / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(b"")
        os.utime(source / name, ns=(10**9, 10**9))  # Where times are whole seconds, they tell at all.

    def there_and_back(first: str, other: str) -> None:
        (source / first).write_bytes(b"filled")
        (source / first).write_bytes(b"")
        (source / other).write_bytes(b"only written while the first one was filled")

    names: list[str] = [entry.name for entry in os.scandir(source)]
    found, captured = capture(source, {1: lambda: there_and_back(*names)})
    assert captured.count(names[0]) == 2
    assert found[names[1]][1].startswith(b"only")


def test_a_write_in_the_tick_of_a_coarse_clock_in_which_the_file_was_opened_is_seen(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on kernels before 6.13: the write has the time that the file had already."""
    monkeypatch.setattr("async_ckpt.system.filesystems._fine_times", lambda: False)
    monkeypatch.setattr("async_ckpt.capture.strategy.leases_hold", lambda kind: False)  # Both are copied.
    for name in ("a", "b"):
        (source / name).write_bytes(b"old" * BIG)
        os.utime(source / name, ns=(0, 10**18))

    class CoarseClock:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fstat(self, fd: int) -> Any:
            status = os.fstat(fd)
            known = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
            return SimpleNamespace(**{**known, "st_ctime_ns": 10**18 + 1})

    monkeypatch.setattr(open_file, "os", CoarseClock())
    clock = [10**18 + 1_000_000]
    monkeypatch.setattr("time.time_ns", lambda: clock[0])

    def rewritten() -> None:
        for name in ("a", "b"):
            (source / name).write_bytes(b"new" * BIG)
            os.utime(source / name, ns=(0, 10**18))
        clock[0] += 10**10

    found, _ = capture(source, {1: rewritten})
    assert {found[name][1] for name in ("a", "b")} == {b"new" * BIG}


def test_a_database_and_its_log_are_of_one_moment(source: Path) -> None:
    """Another process moves money from one account to another, in transactions that are checkpointed into the database
    now and then.
    """
    database = sqlite3.connect(source / "bank.db")
    database.execute("pragma journal_mode = wal")
    database.execute("create table account (id integer primary key, money integer, filler text)")
    database.executemany("insert into account values (?, 100, ?)", [(n, "x" * 3000) for n in range(40)])
    database.commit()
    process = subprocess.Popen([sys.executable, "-c", _BANK, str(source / "bank.db")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    captures = 0
    try:
        for number in range(15):
            target = source.parent / f"snapshot-{number}"
            config = Config(capture_tries=200)
            files = Strategy("copy", str(target), config)
            captured = tree.capture_tree(str(source), str(target), files, config)
            restored = source.parent / f"restored-{number}"
            restored.mkdir()
            for name in ("bank.db", "bank.db-wal"):
                (restored / name).write_bytes(read(captured, target, name))
            with sqlite3.connect(restored / "bank.db") as copy:
                assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
                assert copy.execute("select sum(money), count(*) from account").fetchone() == (4000, 40)
            captures += 1
    finally:
        process.kill()
        process.communicate()
    assert captures == 15


_BANK = """
import random, sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma synchronous = off")
print("begun", flush=True)
while True:
    for _ in range(random.randrange(1, 30)):
        one, other = random.sample(range(40), 2)
        database.execute("begin")
        database.execute("update account set money = money - 1 where id = ?", (one,))
        database.execute("update account set money = money + 1 where id = ?", (other,))
        database.execute("commit")
    if random.random() < 0.3:
        database.execute("pragma wal_checkpoint(truncate)")
    time.sleep(random.uniform(0, 0.02))
"""


def test_what_never_stands_still_is_refused_by_name(source: Path) -> None:
    (source / "quiet").write_bytes(b"quiet")
    with open(source / "restless", "w+b", buffering=0) as held:
        held.write(b"0" * BIG)
        count = iter(range(10**9))

        def write() -> None:
            os.pwrite(held.fileno(), b"%d" % next(count), next(count))

        with pytest.raises(SnapshotError) as caught:
            capture(source, dict.fromkeys(range(1, 10_000), write), Config(capture_tries=3))
    assert "restless all the time" in caught.value.what
    assert caught.value.where == str(source / "restless")
    assert os.listdir(source.parent) == ["source"]


def test_a_file_that_only_grows_does_not_stop_a_capture(source: Path) -> None:
    """A log: it is taken as long as it was at the moment of which the rest is."""
    for name in ("a", "b", "c"):
        (source / name).write_bytes(name.encode())
    with open(source / "log", "ab", buffering=0) as log:
        log.write(b"line\n" * BIG)
        found, _ = capture(source, dict.fromkeys(range(1, 5), lambda: log.write(b"line\n")))
    assert found["log"][1] == b"line\n" * (len(found["log"][1]) // 5)
    assert BIG < len(found["log"][1]) // 5 <= BIG + 4


@pytest.mark.parametrize("kind", PLACES)
def test_a_directory_that_is_swapped_by_renaming_is_captured_from_one_of_the_two(
    on_filesystem: OnFilesystem, kind: str
) -> None:
    base = on_filesystem(kind)
    for generation in ("source", "next"):
        (base / generation / "inner").mkdir(parents=True)
        for name in ("a", "b", "inner/c"):
            (base / generation / name).write_bytes(generation.encode() * BIG)

    def swap() -> None:
        (base / "source").rename(base / "old")
        (base / "next").rename(base / "source")

    found, _ = capture(base / "source", {2: swap})
    assert {found[name][1] for name in ("a", "b", "inner/c")} == {b"next" * BIG}


@pytest.mark.parametrize("kept_open", [True, False])
@pytest.mark.parametrize("after", [1, 2])
def test_a_file_that_becomes_a_link_is_captured_as_that(
    source: Path, monkeypatch: pytest.MonkeyPatch, after: int, kept_open: bool
) -> None:
    """After it was listed, and before it is captured or after."""
    if not kept_open:
        monkeypatch.setattr(tree, "_MAX_OPEN", 0)
    for name in ("a", "b"):
        (source / name).write_bytes(b"x" * SMALL)
    first, second = (entry.name for entry in os.scandir(source))

    def replaced() -> None:
        (source / second).unlink()
        (source / second).symlink_to(first)

    found, _ = capture(source, {after: replaced})
    assert found[second] == ("link", first)
    assert found[first][1] == b"x" * SMALL


def test_a_folder_that_becomes_a_file_is_captured_as_that(source: Path) -> None:
    (source / "a").write_bytes(b"x" * SMALL)
    (source / "folder/inner").mkdir(parents=True)
    (source / "folder/inner/b").write_bytes(b"y" * SMALL)

    def replaced() -> None:
        shutil.rmtree(source / "folder")
        (source / "folder").write_bytes(b"z" * SMALL)

    for after in (1, 2):
        found, _ = capture(source, {after: replaced}, Config(capture_vanished_s=0.01))
        assert {name: content[1] for name, content in found.items()} == {"a": b"x" * SMALL, "folder": b"z" * SMALL}
        shutil.rmtree(source.parent / "snapshot")
        (source.parent / "snapshot.pack").unlink()
        (source / "folder").unlink()
        (source / "folder/inner").mkdir(parents=True)
        (source / "folder/inner/b").write_bytes(b"y" * SMALL)


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_that_is_set_anew_is_captured_as_one_of_the_two(source: Path, inside: bool) -> None:
    """Above what is saved, or in it."""
    for generation in ("one", "two"):
        folder = source.parent / generation
        folder.mkdir()
        for name in ("a", "b", "c"):
            (folder / name).write_bytes(generation.encode() * BIG)
    link = source / "latest" if inside else source.parent / "latest"
    link.symlink_to(source.parent / "one")

    def flip() -> None:
        new = link.with_name("new")
        new.symlink_to(source.parent / "two")
        os.replace(new, link)

    found, _ = capture(source if inside else link, {2: flip})
    prefix = "latest/" if inside else ""
    assert {found[f"{prefix}{name}"][1] for name in ("a", "b", "c")} == {b"two" * BIG}


def test_what_a_rotation_removes_meanwhile_is_not_in_it(source: Path) -> None:
    for name in ("epoch-1", "epoch-2", "epoch-3"):
        (source / name).write_bytes(name.encode() * BIG)
    gone = []

    def rotate() -> None:
        gone.append("epoch-1")
        (source / "epoch-1").unlink()

    found, _ = capture(source, {1: rotate}, Config(capture_vanished_s=0.05))
    assert set(found) == {"epoch-2", "epoch-3"}


def test_a_directory_that_is_on_its_way_out_is_refused(source: Path) -> None:
    """Half of it would be taken for the whole."""
    for name in ("a", "b", "c"):
        (source / name).write_bytes(name.encode() * BIG)
    with pytest.raises(MissingPathError):
        capture(source, {1: lambda: shutil.rmtree(source)})


@pytest.mark.parametrize("kind", LAYERED)
def test_no_link_is_made_where_a_mapping_without_a_descriptor_gets_a_lease_granted(tmp_path: Path, kind: str) -> None:
    if reason := why_not(kind):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            place, other = stack.enter_context(twice(kind, tmp_path))
        except CannotMount as error:
            pytest.skip(str(error))
        for name, seen in {"same": place, "other": other}.items():
            source, target = place / name / "source", place / name / "snapshot"
            source.mkdir(parents=True)
            (source / "weights").write_bytes(b"old!" * BIG)
            mapping = stack.enter_context(contextlib.closing(Mapping(seen / name / "source/weights", 4 * BIG)))
            mapping.write(b"old!" * BIG, 0)
            captured = tree.capture_tree(str(source), str(target), Between(target, {}), CONFIG)
            mapping.write(b"new!" * BIG, 0)
            assert captured.manifest.files[0].how != LINK
            assert read(captured, target, "weights") == b"old!" * BIG


def test_what_is_cached_of_another_machines_file_is_not_taken_for_the_file(tmp_path: Path) -> None:
    """FUSE: what somebody has mapped stays cached, and a write below through a mapping moves no time."""
    if reason := why_not("fuse"):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            place, other = stack.enter_context(twice("fuse", tmp_path))
        except CannotMount as error:
            pytest.skip(str(error))
        source, names = place / "source", ("a", "b")
        source.mkdir()
        below = {}
        for name in names:
            (source / name).write_bytes(b"old!" * BIG)
            below[name] = stack.enter_context(contextlib.closing(Mapping(other / "source" / name, 4 * BIG)))
            below[name].write(b"old!" * BIG, 0)

        def rewritten() -> None:
            for name in names:
                with open(source / name, "rb") as file:
                    cached = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
                assert cached[:] == b"old!" * BIG
                below[name].write(b"new!" * BIG, 0)

        found, _ = capture(source, {1: rewritten})
        assert {found[name][1] for name in names} == {b"new!" * BIG}


def test_a_file_that_was_removed_while_it_was_open_is_no_part_of_a_checkpoint(on_filesystem: OnFilesystem) -> None:
    """FUSE and NFS give it another name until it is closed."""
    source = on_filesystem("fuse") / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"x" * BIG)
    with open(source / "removed", "wb") as file:
        file.write(b"y" * BIG)
        file.flush()
        (source / "removed").unlink()
        assert len(os.listdir(source)) == 2
        found, _ = capture(source, {})
    assert set(found) == {"weights"}


def test_a_file_of_such_a_name_elsewhere_is_a_file(source: Path) -> None:
    (source / ".nfs0123456789abcdef01234567").write_bytes(b"mine")
    assert set(capture(source, {})[0]) == {".nfs0123456789abcdef01234567"}

"""When a captured file may be linked into the place it is loaded to, and when not."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.capture import lease
from async_ckpt.capture.link_back import LinkBack
from async_ckpt.manifest import COPY, LINK, FileEntry


class Captured:
    def __init__(self, base: Path) -> None:
        self.base, self.path, self.target = base, base / "captured", base / "target"
        self.path.write_bytes(b"weights")
        self.path.chmod(0o600)
        self.links = LinkBack(1)

    def entry(self, how: str = LINK) -> FileEntry:
        status = self.path.stat()
        return FileEntry("w", 7, 0o640, how, status.st_ino, status.st_mtime_ns)

    def link(self, entry: FileEntry) -> bool:
        return self.links.link(entry, str(self.path), str(self.target))


@pytest.fixture
def captured(tmp_path: Path) -> Captured:
    return Captured(tmp_path)


def test_a_link_of_the_snapshots_own_is_linked_under_a_lease(captured: Captured) -> None:
    entry = captured.entry()
    assert captured.link(entry)
    assert os.path.samefile(captured.path, captured.target)
    assert stat.S_IMODE(captured.target.stat().st_mode) == 0o640
    assert captured.target.stat().st_mtime_ns == entry.mtime_ns
    leases = captured.links.hand_over()
    assert not lease.is_breaking(leases["w"])
    captured.links.close()
    assert not lease.is_breaking(leases["w"])
    os.close(leases["w"])


def test_a_lease_that_was_not_handed_over_is_let_go(captured: Captured) -> None:
    assert captured.link(captured.entry())
    captured.links.close()
    with open(captured.target, "r+b") as file:  # Would wait for the lease.
        file.write(b"W")


def another_name(captured: Captured) -> FileEntry:
    os.link(captured.path, captured.base / "the trainer's")
    return captured.entry()


def written_to(captured: Captured) -> FileEntry:
    entry = captured.entry()
    os.utime(captured.path, ns=(0, entry.mtime_ns + 1))
    return entry


def made_private(captured: Captured) -> FileEntry:
    entry = captured.entry()
    (captured.base / "private").write_bytes(b"weights")
    os.utime(captured.base / "private", ns=(0, entry.mtime_ns))
    os.rename(captured.base / "private", captured.path)
    return entry


def gone(captured: Captured) -> FileEntry:
    entry = captured.entry()
    captured.path.unlink()
    return entry


def beyond_the_budget(captured: Captured) -> FileEntry:
    captured.links = LinkBack(0)
    return captured.entry()


REASONS: list[Callable[[Captured], FileEntry]] = [another_name, written_to, made_private, gone, beyond_the_budget]


@pytest.mark.parametrize("reason", REASONS)
def test_what_could_change_unnoticed_is_not_linked(captured: Captured, reason: Callable[[Captured], FileEntry]) -> None:
    assert not captured.link(reason(captured))
    assert not captured.target.exists()
    assert captured.links.hand_over() == {}


@pytest.mark.parametrize("how", [COPY, "moved"])
def test_what_has_no_inode_to_compare_with_is_not_linked(captured: Captured, how: str) -> None:
    assert not captured.link(captured.entry(how))


def test_a_file_somebody_has_open_for_writing_is_not_linked(captured: Captured) -> None:
    with open(captured.path, "r+b"):
        assert not captured.link(captured.entry())
    assert not captured.target.exists()


def test_another_file_system_means_a_copy(captured: Captured, on_filesystem: Callable[[str], Path]) -> None:
    captured.target = on_filesystem("tmpfs") / "target"
    assert not captured.link(captured.entry())


def test_two_loads_at_one_time_both_step_back(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: str, target: str, **options: bool) -> None:
        link(source, captured.base / "other load", **options)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", twice)
    assert not captured.link(captured.entry())
    assert not captured.target.exists()

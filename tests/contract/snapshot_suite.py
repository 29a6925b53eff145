"""A directory to capture with one strategy on one file system, and how what was captured is looked at."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt import capture
from async_ckpt.capture import Snapshot
from async_ckpt.capture.content import captured_file
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError

OnFilesystem = Callable[[str], Path]
BIG = 300 << 10


class Place:
    """A directory to save, and where snapshots of it go; ``capture`` is the strategy under test."""

    def __init__(self, base: Path, strategy: str) -> None:
        self.source, self._snapshots = base / "source", base / "snapshots"
        self.strategy = strategy
        self.source.mkdir()
        self._snapshots.mkdir()
        self._captured: list[tuple[Snapshot, str]] = []

    def capture(
        self, path: Path | None = None, *, lease_budget: int = 1000, config: Config | None = None
    ) -> tuple[Snapshot, Path]:
        target = self._snapshots / str(len(self._captured))
        captured = capture.capture(
            str(path or self.source), str(target), self.strategy, config or Config(), lease_budget=lease_budget
        )  # fmt: skip
        self._captured.append((captured, str(target)))
        return captured, target

    def refused(self, path: Path | None = None) -> SnapshotError:
        """The capture fails, leaves nothing behind, and the source is as it was."""
        before = tree(self.source)
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(SnapshotError) as caught:
            self.capture(path)
        assert os.listdir(self._snapshots) == []
        assert tree(self.source) == before
        assert len(os.listdir("/proc/self/fd")) == len(descriptors)
        return caught.value

    def let_go(self) -> None:
        for captured, _ in self._captured:
            for fd in captured.leases.values():
                os.close(fd)


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


def read(captured: Snapshot, target: Path, path: str) -> bytes:
    """One captured file, as the uploader reads it."""
    (entry,) = [entry for entry in captured.manifest.files if entry.path == path]
    source = captured_file(str(target), entry)
    try:
        return source.pread(entry.size, 0)
    finally:
        source.close()


def captured_tree(captured: Snapshot, target: Path) -> dict[str, object]:
    """What a reader gets: bytes from the snapshot, everything else from the manifest."""
    manifest, found = captured.manifest, {}
    for entry in manifest.files:
        data = read(captured, target, entry.path)
        assert len(data) == entry.size
        found[entry.path] = (entry.mode, data)
    found.update({path: (stat.S_IFDIR, mode) for path, mode, _ in manifest.dirs})
    found.update({link.path: ("link", link.target) for link in manifest.links})
    return found

"""Sparse files: what is not on the disk is neither read, nor copied, nor written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from async_ckpt.stores.s3.body import LocalFile
from harness.tasks.task import TASK, Task, close_and_kill

#: Nobody would wait for so much to be read or written.
SIZE = 60 << 30
MIB = 1 << 20


def make(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"begin")
        file.seek(SIZE // 2)
        file.write(b"middle" * MIB)
        file.truncate(SIZE)


def assert_is_it(path: Path) -> None:
    status = os.stat(path)
    assert status.st_size == SIZE
    assert status.st_blocks * 512 < 64 * MIB
    with open(path, "rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(SIZE // 2 - 1)
        assert file.read(6 * MIB + 2) == b"\0" + b"middle" * MIB + b"\0"


@pytest.mark.parametrize("strategy", ["auto", "copy"])
def test_a_sparse_file_of_many_gigabytes_is_saved_committed_and_loaded(task: Task, strategy: str) -> None:
    checkpointer = task.start()
    make(task.work / "sparse")
    reference = checkpointer.save(task.work, snapshot=strategy)
    with open(task.work / "sparse", "r+b") as file:  # In place: the snapshot's is copied away.
        file.write(b"rewritten")
    reference.wait(120)
    assert_is_it(task.stored(reference, "sparse"))
    checkpointer.load(dict(reference), str(task.base / "loaded"))
    assert_is_it(task.base / "loaded/sparse")


def test_zeros_that_come_from_a_network_are_not_written(tmp_path: Path) -> None:
    size, piece = 64 * MIB, 256 << 10
    file = LocalFile(str(tmp_path / "loaded"), size)
    for offset in range(0, size, piece):
        file.write((b"x" if offset % (32 * MIB) == 0 else b"\0") * piece, offset)
    file.close(whole=True)
    assert os.stat(tmp_path / "loaded").st_size == size
    assert os.stat(tmp_path / "loaded").st_blocks * 512 < 2 * MIB
    content = (tmp_path / "loaded").read_bytes()
    assert [content[offset : offset + piece].strip(b"\0") for offset in (0, piece, 32 * MIB)] == [
        b"x" * piece, b"", b"x" * piece,
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["latest", "metadata"])
def test_something_huge_in_the_place_of_metadata_is_not_read(task: Task, what: str) -> None:
    """A retry resumes from the newest there is, and the next commit puts the right thing in the place of ``latest``."""
    first = task.start()
    for number in range(2):
        (task.work / "weights").write_bytes(b"%d" % number)
        first.save(task.work).wait(60)
    folder = Path(task.store.root, TASK.task_folder)
    for name in {"latest": ["latest"], "metadata": ["latest", "0.mfchckpt.1.metadata"]}[what]:
        with open(folder / name, "wb") as file:
            file.truncate(SIZE)
    close_and_kill(first)
    shutil.rmtree(first.spool.directory)
    second = task.start(attempt=1)
    newest = second.load_newest("fresh", str(task.base / "loaded"))
    assert newest is not None
    assert newest["version_id"] == (1 if what == "latest" else 0)
    (task.work / "weights").write_bytes(b"2")
    second.save(task.work).wait(60)
    assert task.latest()["attempt"] == 1

"""Folders inside each other, as many as there may be, and more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from async_ckpt.errors import SnapshotError
from async_ckpt.manifest import MAX_DEPTH
from async_ckpt.system.files import remove_tree
from harness.tasks.task import Task


def make(folder: Path, depth: int) -> None:
    """So many folders inside each other, and a file in the last one; their path may be longer than paths can be."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd)
    os.write(file, b"deep down")
    os.close(file)
    os.close(fd)


@pytest.mark.parametrize("options", [{}, {"storage_format": "tar"}])
def test_as_deep_as_can_be_is_saved_and_loaded(task: Task, options: dict[str, str]) -> None:
    checkpointer = task.start()
    make(task.work, MAX_DEPTH - 1)
    reference = checkpointer.save(task.work, **options)  # type: ignore[arg-type]
    checkpointer.flush(120)
    checkpointer.load(dict(reference), str(task.base / "loaded"))
    inside = "/".join(["d"] * (MAX_DEPTH - 1))
    assert (task.base / "loaded" / inside / "file").read_bytes() == b"deep down"


@pytest.mark.parametrize("depth", [MAX_DEPTH, 1000, 3000])
def test_what_is_deeper_is_refused_at_once_and_leaves_nothing(task: Task, depth: int) -> None:
    checkpointer = task.start()
    make(task.work, depth)
    with pytest.raises(SnapshotError) as caught:
        checkpointer.save(task.work)
    assert f"more than {MAX_DEPTH} folders inside each other" in caught.value.what
    assert "tar" in caught.value.hint
    assert os.listdir(checkpointer.spool.path("data")) == []
    remove_tree(str(task.work))
    assert not task.work.exists()

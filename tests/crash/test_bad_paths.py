"""An empty path, as of a variable that is not set, is never taken for the working directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.watch import Watch, WatchOptions
from harness.tasks.task import Task


@pytest.fixture
def here(task: Task, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a directory to save in it."""
    (task.work / "out").mkdir()
    (task.work / "out" / "weights").write_text("weights")
    monkeypatch.chdir(task.work)
    return task.work


@pytest.mark.parametrize("path", ["", b"", "a\0b"])
def test_what_is_no_path_is_refused_by_save_load_and_watch(task: Task, here: Path, path: Any) -> None:
    checkpointer = task.start()
    kept = checkpointer.save("out")
    with pytest.raises(UsageError, match=r"is not a path.*working directory itself is '\.'"):
        checkpointer.save(path)
    with pytest.raises(UsageError, match="is not a path"):
        checkpointer.load(kept, path)
    with pytest.raises(UsageError, match="is not a path"):
        Watch(checkpointer, path, WatchOptions(), checkpointer.config)
    assert [reference["key"] for reference in checkpointer.list()] == [kept["key"]]
    assert os.listdir(here) == ["out"]


def test_a_collective_save_without_a_path_has_had_its_turn(task: Task, here: Path) -> None:
    checkpointer = task.start()
    alone: dict[str, Any] = {"collective": True, "rank": 0, "world_size": 1}
    first = checkpointer.save("out", **alone)["version_id"]
    with pytest.raises(UsageError, match="is not a path"):
        checkpointer.save("", **alone)
    third, fourth = (checkpointer.save("out", **alone)["version_id"] for _ in range(2))
    assert third - first == 2 * (fourth - third)

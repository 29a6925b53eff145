"""Uploads at a pace, with real processes: whoever waits lifts it, and it outlives an uploader that dies."""

from __future__ import annotations

import time
from typing import Any

import pytest

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import Task, kill, uploader_pid, wait_until

#: More than is sent at once, whatever the pace. Half of the interval is long enough to look at, and to wait for.
SIZE, INTERVAL_S = 4 * CHUNK_BYTES, 5.0


def save(checkpointer: Checkpointer, task: Task) -> Any:
    (task.work / "new").write_bytes(bytes(SIZE))
    (task.work / "new").replace(task.work / "weights")
    return checkpointer.save(task.work)


def pace(checkpointer: Checkpointer) -> dict[str, Any]:
    found: dict[str, Any] = checkpointer.status()["pace"]
    return found


def paced(checkpointer: Checkpointer, task: Task) -> Any:
    """A checkpoint that is on its way at a pace: the second one after an interval."""
    began = time.monotonic()
    save(checkpointer, task).wait(60)
    time.sleep(max(began + INTERVAL_S - time.monotonic(), 0.0))  # The interval is what the pace goes by.
    reference = save(checkpointer, task)
    wait_until(lambda: pace(checkpointer)["bytes_per_s"] > 0, "it has a pace")
    assert "as one is saved every" in pace(checkpointer)["why"]
    return reference


@pytest.mark.parametrize("uploader", ["process", pytest.param("thread", marks=pytest.mark.long)])
def test_whoever_waits_lifts_the_pace(task: Task, uploader: str) -> None:
    checkpointer = task.start(uploader=uploader)
    reference = paced(checkpointer, task)
    assert not reference.done()
    reference.wait(60)
    assert pace(checkpointer)["bytes_per_s"] == 0
    assert reference.state == "COMMITTED"


@pytest.mark.long
def test_the_next_uploader_has_the_pace_of_one_that_was_killed(task: Task) -> None:
    checkpointer = task.start()
    reference = paced(checkpointer, task)
    kill(first := uploader_pid(checkpointer))
    wait_until(lambda: uploader_pid(checkpointer) not in (0, first), "there is another one")
    checkpointer.flush(60)
    assert reference.state == "COMMITTED"


def test_without_a_pace_nothing_is_slowed_down(task: Task) -> None:
    task.set(pace="full")
    checkpointer = task.start()
    save(checkpointer, task).wait(60)
    save(checkpointer, task)
    assert pace(checkpointer) == {**pace(checkpointer), "bytes_per_s": 0, "why": "pace=full was asked for"}
    checkpointer.flush(60)

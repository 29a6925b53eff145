"""Retries: what is loaded back under its name, and what is older than what the task has saved. Real agent and store."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import WATCH_CLOCKS_S, WATCH_EXPLAIN_S
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import Task, wait_until
from harness.watches.watching import Watching, stored, watching
from tests.spread import spread

__all__ = ["watching"]


def first_attempt(task: Task, watching: Watching, count: int, **options: Any) -> None:
    """Save some, and go; the next attempt is on another machine, as far as the directory tells."""
    checkpointer = task.start()
    watch = watching.start(checkpointer, **options)
    for number in range(1, count + 1):
        watching.write(f"checkpoint-{number}", model=f"{number}" * 50_000, small="s")
        wait_until(lambda number=number: watch.saved == number, "it is saved")
    watch.stop()
    checkpointer.flush(60)
    checkpointer.close(clean=True)
    wait_until(lambda: not task.processes(), "the agent has ended")


def second_attempt(task: Task, watching: Watching, folder: str) -> Checkpointer:
    watching.out = task.work / folder
    watching.out.mkdir()
    checkpointer = task.start(attempt=1)
    checkpointer.spool.new_work_directory()
    return checkpointer


def load(checkpointer: Checkpointer, number: int, target: Path) -> None:
    found = next(d for d in checkpointer.list() if d["metadata"]["path"] == f"checkpoint-{number}")
    checkpointer.load(found, str(target))


@pytest.mark.parametrize(("when", "storage_format"), spread(["before", "while"], ["files", "tar"]))
def test_what_a_retry_loads_back_under_its_name_is_not_saved_again(
    task: Task, watching: Watching, when: str, storage_format: str
) -> None:
    first_attempt(task, watching, 3, storage_format=storage_format)
    checkpointer = second_attempt(task, watching, "elsewhere")
    if when == "before":
        load(checkpointer, 2, watching.out / "checkpoint-2")
    # The first attempt was just now: for this watch it is long ago, whatever the file system's clock is.
    watch = watching.start(checkpointer, wall_clock_ns=lambda: time.time_ns() + int(WATCH_CLOCKS_S * 1e9))
    if when == "while":
        wait_until(lambda: watch._has_looked, "it has looked")
        load(checkpointer, 2, watching.out / "checkpoint-2")
    wait_until(lambda: any(e.saved is not None for e in list(watch._recogniser.entries.values())), "it is known again")
    assert watch.saved == 0
    watching.write("checkpoint-4", model="4")
    wait_until(lambda: watch.saved == 1, "the next one is saved")
    watch.stop()
    checkpointer.flush(60)
    assert [path for path, _ in stored(task, checkpointer)] == [f"checkpoint-{n}" for n in (1, 2, 3, 4)]
    assert task.latest()["metadata"]["path"] == "checkpoint-4"


@pytest.mark.parametrize("way", ["copied", "older"])
def test_what_comes_back_by_other_means_is_saved_and_never_the_newest(task: Task, watching: Watching, way: str) -> None:
    first_attempt(task, watching, 3)
    checkpointer = second_attempt(task, watching, "elsewhere")
    if way == "copied":
        shutil.copytree(
            task.work / "out" / "checkpoint-2", watching.out / "checkpoint-2", copy_function=shutil.copyfile
        )
    else:
        for number in (0, 9):  # Of those that are older than the attempt, the last is left out.
            watching.write(f"checkpoint-{number}", model="never saved")
            os.utime(watching.out / f"checkpoint-{number}" / "model", ns=(10**18 + number, 10**18 + number))
    watch = watching.start(checkpointer)
    watch.stop()
    assert watch.saved == 1
    checkpointer.flush(60)
    assert task.latest()["metadata"]["path"] == "checkpoint-3"
    watching.write("checkpoint-1", model="written by the trainer that runs now")
    watching.start(checkpointer).stop()
    checkpointer.flush(60)
    assert task.latest()["metadata"]["path"] == "checkpoint-1"


def test_a_retry_that_finds_nothing_new_says_so(task: Task, watching: Watching) -> None:
    first_attempt(task, watching, 1)
    checkpointer = task.start(attempt=1)
    watching.lines.clear()
    watching.start(checkpointer).stop()
    assert watching.heard("nothing is saved: all that fits was saved before")()


@pytest.mark.parametrize(
    ("there", "options", "said"),
    [
        ("epoch=1-val/loss=0.5.ckpt", {"pattern": "*.ckpt"}, "would with pattern='**/*.ckpt'"),
        ("checkpoint-1/", {}, "nothing is saved: there are no files in checkpoint-1"),
        ("checkpoint-1/model", {"existing": False}, "was there before, and existing=False leaves that"),
        ("log", {}, "nothing is saved: nothing in"),
    ],
)
def test_a_watch_that_saves_nothing_says_why(
    task: Task, watching: Watching, there: str, options: dict[str, Any], said: str
) -> None:
    checkpointer = task.start()
    path = watching.out / there
    (path if there.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    if not there.endswith("/"):
        path.write_text("x")
    watching.start(checkpointer, **options).stop()
    assert watching.heard(said)()


def test_after_some_time_the_log_says_once_that_nothing_fits(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    later_s = [0.0]
    watch = watching.start(checkpointer, clock=lambda: time.monotonic() + later_s[0])
    later_s[0] = WATCH_EXPLAIN_S
    (watching.out / "Checkpoint-1").write_text("x")
    wait_until(watching.heard("so far, nothing in"), "it is said")
    watching.write("checkpoint-2", model="2")
    wait_until(lambda: watch.saved == 1, "it is saved")
    watch.stop()
    assert len([line for line in watching.lines if "nothing" in line]) == 1

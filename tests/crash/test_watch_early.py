"""Checkpoints that do not last: captured early, saved or dropped when more is known. Real agent, local store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tasks.task import Task, close_and_kill, wait_until
from harness.watches.watching import Watching, is_captured, stored, watching

__all__ = ["watching"]

#: As long as the default: nothing of these tests comes to be quiet for so long.
SETTLE_S = 30.0


def in_spool(task: Task) -> list[str]:
    """What lies in the spool's data."""
    return sorted(p.name for p in Path(task.root).rglob("data/*"))


def write(folder: Path, **files: str) -> None:
    """Write a checkpoint as most trainers do: under its own name, file by file."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


def test_every_one_of_a_trainer_that_keeps_two_and_is_fast_is_saved_and_none_twice(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=SETTLE_S)
    for number in range(1, 7):
        write(watching.out / f"checkpoint-{number}", model="m" * 100_000, state=str(number))
        wait_until(lambda number=number: is_captured(watch, f"checkpoint-{number}"), "it stood still")
        if number > 2:
            shutil.rmtree(watching.out / f"checkpoint-{number - 2}")
    wait_until(lambda: watch.saved == 4, "those that were removed are saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [
        (f"checkpoint-{n}", {"model": b"m" * 100_000, "state": b"%d" % n}) for n in range(1, 5)
    ]
    assert task.latest()["metadata"]["path"] == "checkpoint-4"
    assert watching.heard("left out: checkpoint-6 was written to a short time ago")()


def test_a_half_that_is_removed_and_one_that_its_writer_came_back_to_are_not_saved(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=SETTLE_S)
    half, grown, whole = (watching.out / f"checkpoint-{number}" for number in (1, 2, 3))
    write(half, model="m")
    wait_until(lambda: is_captured(watch, "checkpoint-1"), "it stood still")
    write(grown, model="m", log="begun")
    wait_until(lambda: is_captured(watch, "checkpoint-2"), "it stood still")
    with open(grown / "log", "a") as log:
        log.write(", and more")
        log.flush()
        wait_until(lambda: not is_captured(watch, "checkpoint-2"), "that is seen")
        shutil.rmtree(grown)
    write(whole, model="m", optimizer="o", log="l")
    wait_until(lambda: is_captured(watch, "checkpoint-3"), "it stood still")
    shutil.rmtree(half)
    wait_until(watching.heard("checkpoint-2 has gone before it was saved"), "that is told")
    watch.stop(complete=False)
    assert watch.saved == 0
    assert watching.heard("checkpoint-1 has gone before it was saved: it lacked log, which another one has")()
    wait_until(lambda: in_spool(task) == [], "nothing is left in the spool")


@pytest.mark.parametrize("way", ["replaced", "in place"])
def test_each_state_of_a_file_whose_name_is_used_again_is_saved(task: Task, watching: Watching, way: str) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="*.ckpt", settle=SETTLE_S)
    last = watching.out / "last.ckpt"
    for number in range(5):
        text = str(number) * 100_000
        if way == "replaced":
            (task.work / "new").write_text(text)
            last.unlink(missing_ok=True)
            shutil.copy(task.work / "new", last)
        else:
            last.write_text(text)
        wait_until(
            lambda text=text: (
                is_captured(watch, "last.ckpt")
                and Path(watch._recogniser.entries["last.ckpt"].captured.path).read_text() == text
            ),  # type: ignore[union-attr]
            "it stood still",
        )
    wait_until(lambda: watch.saved == 4, "all but the last are saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("last.ckpt", {"last.ckpt": b"%d" % n * 100_000}) for n in range(4)]


def test_those_that_a_fast_trainer_removes_while_the_backlog_is_full_are_saved_when_there_is_room(
    task: Task, watching: Watching
) -> None:
    task.set(max_pending=1)
    gate = task.gate()
    gate.hold("model")
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=SETTLE_S)
    for number in range(1, 8):
        write(watching.out / f"checkpoint-{number}", model="m" * 100_000, state=str(number))
        wait_until(lambda number=number: is_captured(watch, f"checkpoint-{number}"), "it is looked at, whatever waits")
        if number > 2:
            shutil.rmtree(watching.out / f"checkpoint-{number - 2}")
    wait_until(watching.heard("waits: The store cannot keep up"), "there is no room for another one")
    gate.open("model")
    wait_until(lambda: watch.saved == 5, "those that were removed are saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    assert [path for path, _ in stored(task, checkpointer)] == [f"checkpoint-{n}" for n in range(1, 6)]


def test_of_two_names_that_take_turns_in_place_the_one_that_was_written_last_is_the_newest(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="slot-*", settle=2.0)
    for number in range(3):
        (watching.out / f"slot-{number % 2}").write_text(str(number) * 1000)
        wait_until(lambda number=number: is_captured(watch, f"slot-{number % 2}"), "it stood still")
    watch.stop()
    checkpointer.flush(60)
    assert sorted(path for path, _ in stored(task, checkpointer)) == ["slot-0", "slot-1"]
    assert task.latest()["metadata"]["path"] == "slot-0"


def test_what_is_written_into_a_captured_file_after_it_was_removed_is_not_saved(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=SETTLE_S)
    for number in (1, 2, 3):
        write(watching.out / f"checkpoint-{number}", model="m" * 100_000)
        wait_until(lambda number=number: is_captured(watch, f"checkpoint-{number}"), "it stood still")
    with open(watching.out / "checkpoint-1" / "model", "r+") as late:
        shutil.rmtree(watching.out / "checkpoint-1")
        wait_until(watching.heard("checkpoint-1 has gone before it was saved: it was written to"), "that is told")
        late.write("x")
    watch.stop(complete=False)
    assert watch.saved == 0


_CAPTURES = """
import sys, time
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.watch import Watch, WatchOptions
checkpointer = Checkpointer.from_environment()
watch = Watch(checkpointer, sys.argv[1], WatchOptions(settle=30.0), checkpointer.config)
while not any(entry.captured for entry in list(watch._recogniser.entries.values())):
    time.sleep(0.01)
print(flush=True)
time.sleep(600)
"""


def test_what_a_killed_watch_had_captured_is_swept_up_and_the_next_attempt_is_told(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    write(watching.out / "checkpoint-1", model="m" * 100_000)
    script = [sys.executable, "-c", _CAPTURES, str(watching.out)]
    with subprocess.Popen(script, env=task.environment(checkpointer), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert len(in_spool(task)) == 1
    close_and_kill(checkpointer)
    lines: list[str] = []
    checkpointer = task.start(attempt=1, report=lines.append)
    wait_until(lambda: any("checkpoint-1" in line for line in lines), "it is told")
    assert in_spool(task) == []
    assert any("was captured, and not known to be finished, when its watch was killed" in line for line in lines)
    assert (watching.out / "checkpoint-1" / "model").read_text() == "m" * 100_000


def test_on_a_file_system_without_links_small_ones_are_copied_and_of_others_one_line_tells(
    task: Task, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    task.set(watch_copy_bytes=250_000)
    checkpointer = task.start()
    monkeypatch.setattr("async_ckpt.watch.early_capture.os.link", refuse)
    watch = watching.start(checkpointer, settle=SETTLE_S)
    for number, size in ((1, 100_000), (2, 100_000), (3, 100_000)):
        write(watching.out / f"checkpoint-{number}", model="m" * size)
        wait_until(lambda number=number: f"checkpoint-{number}" in watch._recogniser.entries, "it is seen")
    wait_until(watching.heard("cannot be captured before it counts as finished"), "that is told")
    shutil.rmtree(watching.out / "checkpoint-1")
    wait_until(lambda: watch.saved == 1, "it is saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("checkpoint-1", {"model": b"m" * 100_000})]
    assert len([line for line in watching.lines if "they have" in line or "cannot be captured before" in line]) >= 1
    assert os.listdir(task.work / "out") != []

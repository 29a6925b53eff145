"""A watched directory, with a real agent and a local store."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from async_ckpt.errors import WatchError
from async_ckpt.watch import entry_saver
from async_ckpt.watch.events import Events
from async_ckpt.watch.tree import Tree, read_tree
from harness.flow_runs.metaflow_env import REPOSITORY
from harness.tasks.task import Task, wait_until
from harness.watches import trainer
from harness.watches.watching import QUICK_S, Watching, stored, watching
from tests.spread import first_of

__all__ = ["watching"]

#: Longer than a loaded machine keeps a process from running between the close of a file and the opening of the next.
PATIENT_S = 4.0


@pytest.mark.parametrize("way", first_of(["plain", "rename", "marker"]))
def test_every_checkpoint_of_an_unmodified_script_is_committed_once_and_none_is_partial(
    task: Task, watching: Watching, way: str
) -> None:
    checkpointer = task.start()
    count, size = 12, 200_000
    watch = watching.start(checkpointer, settle=PATIENT_S, done="DONE" if way == "marker" else None, keep=3)
    script = [sys.executable, trainer.__file__, str(watching.out), str(count), "--size", str(size), "--way", way]
    subprocess.run(script, check=True, cwd="/")
    watch.stop()
    checkpointer.flush(60)
    marker = {"DONE": b""} if way == "marker" else {}
    wanted = [(f"checkpoint-{n}", {**trainer.expected(0, n, size), **marker}) for n in range(1, count + 1)]
    assert stored(task, checkpointer) == wanted
    assert watch.saved == count


def test_a_half_that_grows_again_is_followed_by_the_whole_and_is_not_what_a_retry_loads(
    task: Task, watching: Watching, tmp_path: Path
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer)
    half = watching.out / "checkpoint-1"
    half.mkdir()
    (half / "model").write_text("m" * 100_000)
    wait_until(lambda: watch.saved == 1, "the half one is taken: nothing tells it from a whole one")
    (half / "optimizer").write_text("o")
    wait_until(lambda: watch.saved == 2, "the whole one is saved")
    watch.stop()
    checkpointer.flush(60)
    assert [sorted(files) for _, files in stored(task, checkpointer)] == [["model"], ["model", "optimizer"]]
    assert task.latest()["version_id"] == 1
    assert watching.heard("grew again")()


def test_one_that_is_held_open_is_not_taken_however_long_it_is_quiet(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer)
    (watching.out / "checkpoint-1").mkdir()
    with open(watching.out / "checkpoint-1" / "model", "w") as file:
        file.write("half")
        file.flush()
        wait_until(watching.heard("checkpoint-1 waits"), "it has been quiet for longer than it must be")
        with pytest.raises(WatchError, match="checkpoint-1 is open for writing"):
            watch.stop(0.5)
        file.write(", and whole")
    assert watch.saved == 0
    watching.start(checkpointer).stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("checkpoint-1", {"model": b"half, and whole"})]


def test_files_are_marked_by_a_file_beside_them(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="*.ckpt", done=".done")
    for number in (1, 2):
        (watching.out / f"epoch={number}.ckpt").write_text(str(number))
    (watching.out / "epoch=2.ckpt.done").touch()
    watch.stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("epoch=2.ckpt", {"epoch=2.ckpt": b"2"})]
    assert watching.heard("left out: epoch=1.ckpt has no .done")()


def test_after_a_failure_only_what_is_finished_is_saved_and_the_log_names_the_rest(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=3600)
    (watching.out / "checkpoint-2").mkdir()
    (watching.out / "checkpoint-2" / "model").write_text("half")
    watching.write("checkpoint-1", model="whole")
    wait_until(lambda: watch.saved == 1, "the one that was renamed is saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("checkpoint-1", {"model": b"whole"})]
    assert watching.heard("left out: checkpoint-2 was written to a short time ago")()


def test_a_retry_saves_nothing_twice_and_leaves_out_what_the_killed_trainer_had_under_its_hands(
    task: Task, watching: Watching
) -> None:
    first = task.start()
    watch = watching.start(first)
    for number in (1, 2):
        watching.write(f"checkpoint-{number}", model=f"{number}")
        wait_until(lambda number=number: watch.saved == number, "it is saved")
    watch.stop()
    first.flush(60)
    (watching.out / "checkpoint-3").mkdir()
    (watching.out / "checkpoint-3" / "model").write_text("half")
    first.close(clean=False)

    second = task.start(attempt=1)
    second.spool.new_work_directory()  # As the decorator makes it, when the attempt begins.
    watch = watching.start(second)
    watching.write("checkpoint-4", model="4")
    wait_until(lambda: watch.saved == 1, "the new one is saved")
    watch.stop()
    assert watching.heard("left out: checkpoint-3 was left by an earlier attempt")()
    watch = watching.start(second)
    (watching.out / "checkpoint-3" / "model").write_text("half, and whole")
    wait_until(lambda: watch.saved == 1, "it is written to again")
    watch.stop()
    second.flush(60)
    assert [(path, files["model"]) for path, files in stored(task, second)] == [
        ("checkpoint-1", b"1"), ("checkpoint-2", b"2"), ("checkpoint-4", b"4"), ("checkpoint-3", b"half, and whole"),
    ]  # fmt: skip


def test_a_retry_does_not_take_a_half_one_for_whole_because_of_the_marker_of_its_last_time(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    last, marker = watching.out / "last.ckpt", watching.out / "last.ckpt.done"
    last.write_text("whole")
    marker.touch()
    os.utime(last, ns=(10**18, 10**18))
    os.utime(marker, ns=(10**18, 10**18))
    watch = watching.start(checkpointer, pattern="*.ckpt", done="done")
    wait_until(lambda: watch.saved == 1, "it is saved")
    watch.stop()
    checkpointer.flush(60)
    last.write_text("hal")  # Written anew in place, and killed.
    os.utime(last, ns=(10**18 + 1, 10**18 + 1))
    checkpointer.close(clean=False)
    checkpointer = task.start(attempt=1)
    checkpointer.spool.new_work_directory()
    watch = watching.start(checkpointer, pattern="*.ckpt", done="done")
    watch.stop()
    assert watch.saved == 0
    assert watching.heard("left out: last.ckpt was left by an earlier attempt")()
    last.write_text("whole again")
    marker.touch()
    watch = watching.start(checkpointer, pattern="*.ckpt", done="done")
    watch.stop()
    checkpointer.flush(60)
    assert [files["last.ckpt"] for _, files in stored(task, checkpointer)] == [b"whole", b"whole again"]


def test_what_was_there_before_can_be_left_alone(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watching.write("checkpoint-1", model="old")
    watch = watching.start(checkpointer, existing=False)
    watching.write("checkpoint-2", model="new")
    watch.stop()
    checkpointer.flush(60)
    assert [path for path, _ in stored(task, checkpointer)] == ["checkpoint-2"]


def test_a_directory_that_comes_late_vanishes_and_comes_back_is_followed(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watching.out.rmdir()
    watch = watching.start(checkpointer)
    wait_until(watching.heard("does not exist yet"), "it is waited for")
    for number in (1, 2, 3):
        watching.out.mkdir()
        watching.write(f"checkpoint-{number}", model=str(number))
        wait_until(lambda number=number: watch.saved == number, "it is saved")
        os.rename(watching.out, task.work / f"away-{number}")
        wait_until(lambda number=number: sum("has vanished" in line for line in watching.lines) == number, "it is seen")
    watch.stop()  # All that was there is saved: nothing is lost.
    checkpointer.flush(60)
    assert [path for path, _ in stored(task, checkpointer)] == [f"checkpoint-{n}" for n in (1, 2, 3)]


def test_a_directory_that_never_comes_or_vanishes_with_what_was_not_saved_is_an_error(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, settle=3600)
    (watching.out / "checkpoint-1").mkdir()
    (watching.out / "checkpoint-1" / "model").write_text("x")
    wait_until(lambda: watch._recogniser.pending(), "it is seen")
    os.rename(watching.out, task.work / "away")
    wait_until(watching.heard("has vanished: it is waited for"), "that is seen as well")
    with pytest.raises(WatchError, match="out has vanished"):
        watch.stop()
    watch.stop()  # Said once.
    with pytest.raises(WatchError, match="out never came into being"):
        watching.start(checkpointer).stop()


@pytest.mark.long
def test_a_thousand_files_at_once_are_each_committed_once(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="*.ckpt")
    for number in range(1000):
        (watching.out / f"epoch={number}.ckpt").write_text(str(number))
    watch.stop()
    checkpointer.flush(120)
    found = stored(task, checkpointer)
    assert sorted(path for path, _ in found) == sorted(f"epoch={n}.ckpt" for n in range(1000))
    assert all(files == {path: path[6:-5].encode()} for path, files in found)


def test_moved_checkpoints_leave_the_directory_and_come_whole_to_the_store(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, move=True, pattern="**/checkpoint-*")
    for number in range(5):
        watching.write(f"run/checkpoint-{number}", model=f"{number}", deep="checkpoint-1")
    wait_until(lambda: watch.saved == 5, "all are saved")
    watch.stop()
    checkpointer.flush(60)
    assert os.listdir(watching.out / "run") == []
    found = sorted(stored(task, checkpointer), key=lambda item: item[0])  # Events begin when the folder is seen.
    assert found == [(f"run/checkpoint-{n}", {"model": b"%d" % n, "deep": b"checkpoint-1"}) for n in range(5)]


_KILLED_WHILE_IT_MOVES = """
import os, signal, sys, time
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.spool.versions import Versions
from async_ckpt.watch import Watch, WatchOptions, retention
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
checkpointer = Checkpointer.from_environment()
if sys.argv[2] == "before it is admitted":
    Versions.next = die
else:
    retention.remove_tree = die
Watch(checkpointer, sys.argv[1], WatchOptions(settle=0.05, move=True), checkpointer.config)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("moment", "there"), [("before it is admitted", True), ("while it is removed", False)], ids=["before", "while"]
)
def test_one_whose_move_was_cut_off_is_on_the_disk_or_saved_and_no_part_of_it_is_left_as_a_checkpoint(
    task: Task, watching: Watching, moment: str, there: bool
) -> None:
    checkpointer = task.start()
    watching.write("checkpoint-1", model="all I have")
    script = [sys.executable, "-c", _KILLED_WHILE_IT_MOVES, str(watching.out), moment]
    assert subprocess.run(script, env=task.environment(checkpointer)).returncode == -signal.SIGKILL
    assert (watching.out / "checkpoint-1").exists() == there
    checkpointer.flush(60)
    assert stored(task, checkpointer) == ([] if there else [("checkpoint-1", {"model": b"all I have"})])
    watching.start(checkpointer, move=True).stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [("checkpoint-1", {"model": b"all I have"})]
    assert os.listdir(watching.out) == []


def test_one_that_is_opened_in_the_moment_it_is_moved_stays_until_its_writer_is_done(
    task: Task, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def look_again(now: str) -> Tree:
        if not opened:  # All was quiet at the look; now it is captured.
            opened.append(os.open(Path(now, "log"), os.O_WRONLY | os.O_APPEND))
        return read_tree(now)

    monkeypatch.setattr(entry_saver, "read_tree", look_again)
    checkpointer = task.start()
    watching.write("checkpoint-1", model="m", log="one\n")
    watch = watching.start(checkpointer, move=True)
    wait_until(lambda: watch.saved == 1, "it is saved")
    os.write(opened[0], b"two\n")
    os.close(opened[0])
    watch.stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [
        ("checkpoint-1", {"model": b"m", "log": text}) for text in (b"one\n", b"one\ntwo\n")
    ]
    assert os.listdir(watching.out) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "inotify watch limit reached"), "sysctl fs.inotify.max_user_watches"),
        (OSError(errno.EMFILE, "inotify instance limit reached"), "sysctl fs.inotify.max_user_instances"),
        (OSError(errno.ENOSYS, "no inotify"), "no inotify"),
        (ImportError("No module named 'watchdog'"), "No module named 'watchdog'"),
    ],
)
def test_without_events_all_is_found_by_looking_and_one_line_says_why(
    task: Task, watching: Watching, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(self: object, folder: str) -> None:
        raise error

    monkeypatch.setattr(Events, "_schedule", fail)
    checkpointer = task.start()
    watch = watching.start(checkpointer)
    watching.write("checkpoint-1", model="1")
    wait_until(lambda: watch.saved == 1, "it is found")
    watching.write("checkpoint-2", model="2")
    watch.stop()
    checkpointer.flush(60)
    assert [path for path, _ in stored(task, checkpointer)] == ["checkpoint-1", "checkpoint-2"]
    assert [said in line for line in watching.lines if "no events" in line] == [True]


def test_only_what_is_in_the_store_is_removed_and_the_newest_stay(task: Task, watching: Watching) -> None:
    gate = task.gate()
    gate.hold("metadata")
    checkpointer = task.start()
    (watching.out / ".async_ckpt-removed-1").mkdir()
    watch = watching.start(checkpointer, keep=2)
    for number in range(5):
        watching.write(f"checkpoint-{number}", model=str(number))
        wait_until(lambda number=number: watch.saved == number + 1, "it is saved")
    wait_until(lambda: gate.waiting("metadata"), "nothing is committed")
    assert sorted(os.listdir(watching.out)) == [f"checkpoint-{n}" for n in range(5)]
    gate.open_all()
    wait_until(lambda: len(os.listdir(watching.out)) == 2, "the older ones are removed")
    assert sorted(os.listdir(watching.out)) == ["checkpoint-3", "checkpoint-4"]
    watch.stop()
    checkpointer.flush(60)
    assert len(stored(task, checkpointer)) == 5


def test_two_watched_directories_share_nothing_though_their_files_have_the_same_names_sizes_and_times(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    root = watching.out
    for rank in range(2):
        watching.out = root / f"rank{rank}"
        watching.out.mkdir()
        watching.write("checkpoint-1", model=f"of {rank}")
        os.utime(watching.out / "checkpoint-1" / "model", ns=(10**18, 10**18))
        watching.start(checkpointer).stop()
        checkpointer.flush(60)  # The next one is told what was saved.
    assert stored(task, checkpointer) == [("checkpoint-1", {"model": b"of %d" % rank}) for rank in range(2)]


def test_a_capture_that_is_refused_at_its_end_saves_nothing(task: Task) -> None:
    checkpointer = task.start()
    folder = task.work / "checkpoint-1"
    folder.mkdir()
    (folder / "model").write_text("x" * 100_000)
    seen = []

    def check() -> None:
        seen.append(os.listdir(checkpointer.spool.path("data")))
        raise RuntimeError("it changed")

    for strategy in ("auto", "copy"):
        with pytest.raises(RuntimeError, match="it changed"):
            checkpointer.save(folder, snapshot=strategy, check=check)
    assert [len(names) > 0 for names in seen] == [True, True], "it was captured by then"
    assert (folder / "model").read_text() == "x" * 100_000
    assert checkpointer.list() == checkpointer.spool.records.pending() == []
    assert os.listdir(checkpointer.spool.path("data")) == []


def test_the_command_watches_until_it_is_told_to_end_and_saves_what_was_written_last(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    command = [
        sys.executable, "-m", "async_ckpt", "watch", str(watching.out), "--settle", str(QUICK_S), "--name", "trainer",
        "--metadata-from", "trainer_state.json", "--keep", "1", "--json",
    ]  # fmt: skip
    command[1:3] = ["-c", "from async_ckpt.cli import main; main()"]
    process = subprocess.Popen(
        command, env=task.environment(checkpointer), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    watching.write("checkpoint-1", **{"trainer_state.json": '{"global_step": 1}'})
    lines = []
    while "saved as 0.trainer.0" not in (line := process.stderr.readline()):
        assert line, "the command ended"
        lines.append(line)
    watching.write("checkpoint-2", model="no state")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)) == (0, {"saved": 2})
    assert "checkpoint-2 is saved without metadata_from: FileNotFoundError" in err
    checkpointer.flush(60)
    listed = [{k: v for k, v in data["metadata"].items() if k != "watched"} for data in checkpointer.list()]
    assert listed == [{"path": "checkpoint-2"}, {"path": "checkpoint-1", "global_step": 1}]

    process = subprocess.Popen(
        [*command[:-1], "--no-existing"], env=task.environment(checkpointer), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    os.rename(watching.out, task.work / "away")
    assert process.stderr is not None
    while "has vanished" not in (line := process.stderr.readline()) and "does not exist yet" not in line:
        assert line, "the command ended"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 1), "whether it was there when it was looked at first"
    assert "Traceback" not in err

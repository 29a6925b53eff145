"""Files that belong together, watched: one checkpoint each. Real agent, local store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.tasks.task import Task, wait_until
from harness.watches.watching import Watching, is_captured, stored, watching

__all__ = ["watching"]

PARTS = [f"data-0000{n}-of-00002" for n in range(2)]


def write_pair(out: Path, number: int) -> None:
    """As TensorFlow does: parts, index, and then the file that names it."""
    for part in PARTS:
        (out / f"ckpt-{number}.{part}").write_text(f"{number} {part}" * 10_000)
    (out / f"ckpt-{number}.index").write_text(str(number))
    (out / "checkpoint").write_text(f'model_checkpoint_path: "ckpt-{number}"\n')


def pair(number: int) -> dict[str, bytes]:
    files = {f"ckpt-{number}.{part}": f"{number} {part}".encode() * 10_000 for part in PARTS}
    tracker = f'model_checkpoint_path: "ckpt-{number}"\n'.encode()
    return {**files, f"ckpt-{number}.index": b"%d" % number, "checkpoint": tracker}


def test_pairs_of_a_trainer_that_keeps_two_are_each_one_checkpoint_and_a_half_is_none(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="ckpt-*", settle=30.0)
    for number in range(1, 5):
        write_pair(watching.out, number)
        wait_until(lambda number=number: is_captured(watch, f"ckpt-{number}"), "it stood still")
        for name in [*PARTS, "index"] if number > 2 else ():
            (watching.out / f"ckpt-{number - 2}.{name}").unlink()
    wait_until(lambda: watch.saved == 2, "those that were removed are saved")
    watch.stop(complete=False)
    (watching.out / f"ckpt-5.{PARTS[0]}").write_text("half")
    watch = watching.start(checkpointer, pattern="*.index")
    (watching.out / "ckpt-5.index").write_text("5")
    watch.stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [
        *((f"ckpt-{n}", pair(n)) for n in (1, 2)),
        ("ckpt-3", {name: text for name, text in pair(3).items() if name != "checkpoint"}),
        ("ckpt-4", pair(4)),
    ]
    assert watching.heard(f"left out: ckpt-5 lacks ckpt-5.{PARTS[1]}")()


@pytest.mark.parametrize("options", [{"move": True}, {"keep": 1}], ids=["moved", "kept"])
def test_what_belongs_together_leaves_the_directory_together(
    task: Task, watching: Watching, options: dict[str, object]
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern=r"step-*", group=r"(step-\d+)\.", **options)
    for number in (1, 2):
        for name in ("model", "optimizer"):
            (watching.out / f"step-{number}.{name}").write_text(f"{name} {number}")
        (watching.out / "notes").write_text("stay")
    wait_until(lambda: watch.saved == 2, "both are saved")
    left = {"notes"} if "move" in options else {"notes", "step-2.model", "step-2.optimizer"}
    wait_until(lambda: {path.name for path in watching.out.iterdir()} == left, "what is in the store is removed")
    watch.stop()
    checkpointer.flush(60)
    assert stored(task, checkpointer) == [
        (f"step-{n}", {f"step-{n}.{name}": f"{name} {n}".encode() for name in ("model", "optimizer")}) for n in (1, 2)
    ]


def test_a_directory_of_deepspeed_is_saved_with_the_file_that_names_it(task: Task, watching: Watching) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="global_step*", settle=30.0)
    for number in (1, 2, 3):
        folder = watching.out / f"global_step{number}"
        folder.mkdir()
        (folder / "mp_rank_00_model_states.pt").write_text(str(number))
        (watching.out / "latest").write_text(folder.name)
        wait_until(lambda number=number: is_captured(watch, f"global_step{number}"), "it stood still")
        wait_until(lambda number=number: watch._recogniser.entries[f"global_step{number}"].trackers, "its name is seen")
    shutil.rmtree(watching.out / "global_step1")
    wait_until(lambda: watch.saved == 1, "it is saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    wanted = {"global_step1/mp_rank_00_model_states.pt": b"1", "latest": b"global_step1"}
    assert stored(task, checkpointer) == [("global_step1", wanted)]


def test_a_directory_of_megatron_is_finished_with_the_marker_in_it_and_has_its_metadata_from_there(
    task: Task, watching: Watching
) -> None:
    checkpointer = task.start()
    watch = watching.start(checkpointer, pattern="iter_*", done="DONE", metadata_from="state.json", settle=30.0)
    for number in (1, 2):
        folder = watching.out / f"iter_000000{number}"
        folder.mkdir()
        (folder / "state.json").write_text(f'{{"loss": {number}}}')
    (watching.out / "iter_0000001" / "DONE").touch()
    wait_until(lambda: watch.saved == 1, "the marked one is saved")
    watch.stop(complete=False)
    checkpointer.flush(60)
    wanted = {"iter_0000001/state.json": b'{"loss": 1}', "iter_0000001/DONE": b""}
    assert stored(task, checkpointer) == [("iter_0000001", wanted)]
    assert task.latest()["metadata"]["loss"] == 1

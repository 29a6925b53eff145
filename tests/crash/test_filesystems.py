"""On every kind of file system, whoever writes, and in whatever way: what is committed was there at one moment of the
save. Few of each here; ``python -m stress.filesystems`` has all.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from async_ckpt.errors import CheckpointError
from harness.files.filesystem_matrix import KINDS, WRITERS, Cell, Tally, cells, run
from harness.files.filesystems import CannotMount, twice, why_not
from harness.files.generations import NAMES, WAYS, judge
from harness.tasks.task import Task, wait_until

MIB = 1 << 20
_SIZES = {"weights-b": 160 << 10, "weights-a": 96 << 10, "step": 8 << 10}


def tried(task: Task, tmp_path: Path, kind: str, chosen: list[Cell], rounds: int) -> Tally:
    if reason := why_not(kind):
        pytest.skip(reason)
    total = Tally()
    try:
        with twice(kind, tmp_path) as (place, other):
            try:
                for tally in run(task, place, other, chosen, rounds, random.Random()).values():
                    total.add(tally)
            finally:
                assert task.close() == []
    except CannotMount as error:
        pytest.skip(str(error))
    assert (total.wrong, total.failed) == ([], [])
    assert total.committed + total.refused == total.saves == rounds * len(chosen)
    return total


@pytest.mark.parametrize("kind", ["disk", "overlay", "fuse"])
def test_every_checkpoint_is_of_one_moment(task: Task, tmp_path: Path, kind: str) -> None:
    """Each way of writing once; by a thread, another process, and through another mount in turn."""
    chosen = [Cell(way, WRITERS[number % len(WRITERS)], "auto") for number, way in enumerate(WAYS)]
    total = tried(task, tmp_path, kind, chosen, 2)
    assert total.committed >= len(chosen)
    assert ("link" in total.how) == (kind == "disk")


@pytest.mark.parametrize("how", ["truncated", "touched"])
def test_what_is_truncated_through_an_overlay_above_is_not_committed(task: Task, tmp_path: Path, how: str) -> None:
    """The one write that waits for no lease. Whoever only sets another time has written nothing."""
    if reason := why_not("overlay-upper"):
        pytest.skip(reason)
    gate = task.gate()
    gate.hold("weights")
    try:
        with twice("overlay-upper", tmp_path) as (place, above):
            checkpointer = task.move_to(place).start()
            (task.work / "weights").write_bytes(b"x" * MIB)
            reference = checkpointer.save(task.work)
            wait_until(lambda: gate.waiting("weights"), "the upload stands before the gate")
            if how == "truncated":
                for size in (MIB // 2, MIB):
                    os.truncate(above / "work/weights", size)
            else:
                (above / "work/weights").touch()
            gate.open("weights")
            with contextlib.suppress(CheckpointError):
                reference.wait(60)
            state, _ = checkpointer.state(reference.id)
            assert state == ("FAILED" if how == "truncated" else "COMMITTED")
            assert task.close() == []
    except CannotMount as error:
        pytest.skip(str(error))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_checkpoint_is_of_one_moment_in_all_combinations(task: Task, tmp_path: Path, kind: str) -> None:
    tried(task, tmp_path, kind, list(cells(kind)), 4)


def generation(*numbers: int) -> dict[str, bytes]:
    """A checkpoint whose files are of these generations."""
    return {
        name: number.to_bytes(8, "little") * (_SIZES[name] // 8) for name, number in zip(NAMES, numbers, strict=True)
    }


def test_the_judge_knows_what_is_of_one_moment_and_what_is_not() -> None:
    assert judge(generation(7, 7, 7), "r+b", 7, 7) == ""
    assert judge(generation(8, 7, 7), "r+b", 7, 8) == ""
    half = generation(8, 7, 7)
    half["weights-a"] = generation(0, 8, 0)["weights-a"][: 40 << 10] + half["weights-a"][40 << 10 :]
    assert judge(half, "r+b", 7, 8) == ""
    assert "several moments" in judge(generation(7, 8, 7), "r+b", 7, 8)
    assert "several moments" in judge(generation(9, 7, 7), "r+b", 7, 9)
    assert "saved between" in judge(generation(7, 7, 7), "r+b", 8, 8)
    assert "saved between" in judge(generation(8, 8, 8), "r+b", 7, 7)
    torn = {**half, "weights-a": half["weights-a"][::-1]}
    assert judge(torn, "r+b", 7, 8)
    short = {**generation(8, 8, 7), "weights-a": generation(8, 8, 7)["weights-a"][: 4 << 10]}
    assert judge(short, "truncate", 7, 8) == ""
    assert "instead of" in judge(short, "r+b", 7, 8)
    assert "not complete" in judge({**short, "step": generation(8, 8, 8)["step"]}, "truncate", 7, 8)
    assert "the files" in judge({"step": b""}, "r+b", 0, 1)

"""A full disk, under the spool, the store, or what is loaded: a clear error, and nothing that was admitted is lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from async_ckpt import capture
from async_ckpt.errors import CheckpointError, SnapshotError, SpoolError, StoreError
from async_ckpt.spool.journal import COMMITTED, FAILED
from async_ckpt.spool.snapshots import BUFFER
from async_ckpt.state.stager import state_saver
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from harness.files.filesystems import CannotMount, small_tmpfs
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import Task, agent_pid, content, kill, wait_until

SIZE = 8 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    try:
        with small_tmpfs(tmp_path, SIZE) as folder:
            yield folder
    except CannotMount as error:
        pytest.skip(str(error))


def fill(folder: Path) -> Path:
    """Leave nothing of the disk; returns the file to remove."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 << 10))
        except OSError:
            return filler


def test_a_full_spool_refuses_the_save_and_keeps_what_it_has(task: Task, small: Path) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(min_free_bytes=0)
    checkpointer = task.move_to(small).start()
    first = save(checkpointer, task, 0)
    task.work.joinpath("step").write_bytes(b"packed: it needs room in the spool")
    filler = fill(small)
    with pytest.raises((SpoolError, SnapshotError), match="No space left on device") as caught:
        checkpointer.save(task.work)
    assert "SPOOL_DIR" in str(caught.value)
    assert checkpointer.spool.records.ids() == [first.id]
    filler.unlink()
    second = checkpointer.save(task.work, metadata={"number": 0})
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == [first["version_id"], second["version_id"]]
    for reference in (first, second):
        assert task.stored(reference, "weights").read_bytes() == content(0, BIG)
    checkpointer.close(clean=True)
    wait_until(lambda: not task.processes(), "the agent is gone")


def in_memory(checkpointer: Checkpointer) -> list[Path]:
    """The buffers and the snapshots that are in memory."""
    return [path for annex in checkpointer.spool.snapshots.annexes() for path in Path(annex).iterdir()]


@pytest.mark.parametrize("state_dir", ["/dev/shm", pytest.param("", marks=pytest.mark.long)])
def test_a_full_spool_refuses_a_state_as_well_and_holds_no_memory_for_it(
    task: Task, small: Path, state_dir: str
) -> None:
    task.set(min_free_bytes=0, state_dir=state_dir)
    checkpointer = task.move_to(small).start()
    saver = state_saver(checkpointer)
    checkpointer.tracker.wait_for_start()  # The agent could not begin on a full disk.
    for first in (0, 3):  # At the second time there are buffers that a state may be staged in.
        filler = fill(small)
        for _ in range(3):
            with pytest.raises(SpoolError, match=r"No space left on device|no room for a state"):
                saver.save({"weights": np.ones(BIG, np.uint8)})
            assert all(path.suffix == BUFFER for path in in_memory(checkpointer)), "there is no snapshot of it"
        filler.unlink()
        for number in range(first, first + 3):
            saver.save({"weights": np.full(BIG, number, np.uint8)}).wait(60)
            assert sum(path.suffix == BUFFER for path in in_memory(checkpointer)) <= 2
        # The agent removes a snapshot a moment after it has told that the checkpoint is in the store.
        wait_until(lambda: all(path.suffix == BUFFER for path in in_memory(checkpointer)), "memory has no snapshot")
    saver.save({"weights": np.full(BIG, 6, np.uint8)}).wait(60)
    if state_dir:
        last = np.full(BIG, 6, np.uint8).tobytes()
        assert any(last in path.read_bytes() for path in in_memory(checkpointer) if path.suffix), "one is used again"
    checkpointer.close(clean=True)
    assert len(task.committed_versions()) == 7


def test_a_full_store_is_told_and_the_next_attempt_brings_everything_in(task: Task, small: Path) -> None:
    task.store = StoreSpec("local", str(small / "store"))
    filler = fill(small)
    task.set(on_failure="warn")
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(3)]
    wait_until(lambda: all(reference.state == FAILED for reference in references), "the store refuses all")
    assert "No space left on device" in str(references[0].error)
    with pytest.raises(CheckpointError, match="3 checkpoints are not in the store"):
        checkpointer.flush(60)
    assert task.committed() == []
    checkpointer.close(clean=False)
    filler.unlink()
    again = task.start(attempt=1)
    again.flush(60)
    assert [again.state(reference.id)[0] for reference in references] == [COMMITTED] * 3
    for number, reference in enumerate(references):
        assert task.stored(reference, "weights").read_bytes() == content(number, BIG)
    again.close(clean=True)
    wait_until(lambda: not task.processes(), "the agent is gone")


@pytest.mark.parametrize("storage_format", ["files", "tar"])
def test_a_load_that_does_not_fit_leaves_the_directory_as_it_was(task: Task, small: Path, storage_format: str) -> None:
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, BIG))
    reference = checkpointer.save(task.work, storage_format=storage_format)
    checkpointer.flush(60)
    target = small / "target"
    target.mkdir()
    (target / "weights").write_bytes(b"what was there")
    filler = fill(small)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpointer.load(reference, str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"weights": b"what was there"}
    assert sorted(os.listdir(small)) == ["filler", "target"]
    filler.unlink()
    checkpointer.load(reference, str(target))
    assert (target / "weights").read_bytes() == content(0, BIG)


def test_a_store_that_is_full_says_what_to_do(task: Task, small: Path) -> None:
    task.store = StoreSpec("local", str(small / "store"))
    fill(small)
    checkpointer = task.start()
    reference = save(checkpointer, task, 0)
    with pytest.raises(StoreError, match="Free some space"):
        reference.wait(60)
    checkpointer.close(clean=False)


def finishes_when(save: Callable[[], object], let_go: Callable[[], object]) -> bool:
    """Whether a save in another thread goes well that has begun before."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(save())
        except CheckpointError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    let_go()
    thread.join(60)
    assert outcome, "the save never ends"
    assert not isinstance(outcome[0], CheckpointError), outcome[0]
    return True


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_save_that_finds_the_disk_full_half_way_waits_until_uploads_give_it_back(
    what: str, task: Task, tmp_path: Path
) -> None:
    try:
        with small_tmpfs(tmp_path, SIZE, inodes=75 if what == "inodes" else 0) as folder:
            gate = task.gate()
            gate.hold("weights")
            # As if nothing were short, so that the capture itself finds out.
            task.set(min_free_bytes=1, min_free_inodes=1)
            checkpointer = task.move_to(folder).start()
            for number in range(20):
                (task.work / f"{number}").write_bytes(b"x" * (40_000 if what == "inodes" else 1000))
            (task.work / "weights").write_bytes(content(0, 3 << 20 if what == "bytes" else BIG))
            first = checkpointer.save(task.work, snapshot="copy")
            wait_until(lambda: gate.waiting("weights"), "the first is on its way")
            assert finishes_when(lambda: checkpointer.save(task.work, snapshot="copy"), lambda: gate.open("weights"))
            checkpointer.flush(60)
            assert first.state == COMMITTED
            assert len(task.committed()) == 2
            checkpointer.close(clean=True)
            wait_until(lambda: not task.processes(), "the agent is gone")
    except CannotMount as error:
        pytest.skip(str(error))


def out_of_quota(times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """So many captures find that there is none left; returns what was captured."""
    really, captured = capture.capture, list[str]()

    def refuse(path: str, *arguments: object, **keywords: object) -> object:
        captured.append(path)
        if len(captured) <= times:
            cause = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            raise SnapshotError(f"Cannot capture {path}: {cause.strerror}") from cause
        return really(path, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(capture, "capture", refuse)
    return captured


def test_a_quota_that_is_used_up_is_waited_for_as_long_as_uploads_may_give_it_back(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    wait_until(lambda: gate.waiting("weights"), "the first is on its way")
    captured = out_of_quota(1, monkeypatch)
    assert finishes_when(lambda: checkpointer.save(task.work), lambda: gate.open("weights"))
    assert len(captured) == 2
    checkpointer.flush(60)
    # Nothing is on its way now.
    out_of_quota(9, monkeypatch)
    with pytest.raises(SnapshotError, match="quota"):
        checkpointer.save(task.work)


@pytest.mark.parametrize("settings", [{"on_backlog": "raise"}, {"min_free_bytes": 0}])
def test_whoever_does_not_want_to_wait_hears_of_it_at_once(
    settings: dict[str, object], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(**settings)
    checkpointer = task.start()
    save(checkpointer, task, 0)
    captured = out_of_quota(9, monkeypatch)
    with pytest.raises(SnapshotError, match="quota"):
        checkpointer.save(task.work)
    assert len(captured) == 1
    gate.open("weights")
    checkpointer.flush(60)


def test_an_agent_that_dies_while_the_disk_is_full_has_a_successor(task: Task, small: Path) -> None:
    """It cannot write its journal anew, nor its name: but what it uploads gives room back."""
    gate = task.gate()
    gate.hold("weights")
    task.set(min_free_bytes=0)
    checkpointer = task.move_to(small).start()
    references = [save(checkpointer, task, number) for number in range(2)]
    checkpointer.status()
    fill(small)
    kill(agent_pid(checkpointer))
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]
    assert [task.stored(reference, "weights").read_bytes() for reference in references] == [
        content(number, BIG) for number in range(2)
    ]

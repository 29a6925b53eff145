"""A store that cannot keep up: saves wait, the oldest are dropped, or an error says so, as the user chose."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_ckpt.errors import BacklogError, SpoolError, StoreError
from async_ckpt.spool.journal import COMMITTED, SUPERSEDED, Journal
from async_ckpt.stores.local import LocalStore
from harness.files.filesystems import CannotMount, small_tmpfs
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import Task, agent_pid, content, kill, wait_until


def states(references: list[object]) -> list[str]:
    return [reference.state for reference in references]  # type: ignore[attr-defined]


def test_a_save_waits_until_there_is_room(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=2)
    checkpointer = task.start()
    for number in range(2):
        save(checkpointer, task, number)
    saved = threading.Event()

    def third() -> None:
        save(checkpointer, task, 2)
        saved.set()

    saver = threading.Thread(target=third)
    saver.start()
    assert not saved.wait(0.5)
    assert len(checkpointer.spool.records.ids()) == 2
    gate.open("weights")
    assert saved.wait(60)
    saver.join()
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1, 2]


@pytest.mark.parametrize("limits", [{"max_pending": 2}, {"max_pending_bytes": 2 * BIG}])
def test_a_save_that_may_not_wait_is_refused_and_leaves_nothing(task: Task, limits: dict[str, int]) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(on_backlog="raise", **limits)
    checkpointer = task.start()
    for number in range(2):
        save(checkpointer, task, number)
    with pytest.raises(BacklogError, match=f"{next(iter(limits))}={next(iter(limits.values()))}") as caught:
        save(checkpointer, task, 2)
    assert "on_backlog" in caught.value.hint
    assert len(checkpointer.spool.records.ids()) == len(os.listdir(checkpointer.spool.path("data"))) == 2
    gate.open("weights")
    checkpointer.flush(60)
    save(checkpointer, task, 3)
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1, 2]


def test_a_wait_for_room_ends(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=1, backlog_timeout_s=0.2)
    checkpointer = task.start()
    save(checkpointer, task, 0)
    with pytest.raises(BacklogError, match=r"after 0\.2 s"):
        save(checkpointer, task, 1)


def test_the_oldest_that_wait_are_dropped_but_the_newest_of_each_name(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=4, on_backlog="supersede")
    checkpointer = task.start()
    first = [save(checkpointer, task, number) for number in range(2)]
    wait_until(lambda: states(first) == ["UPLOADING"] * 2, "both uploads go on")
    best = checkpointer.save(task.work, name="best")
    others = [save(checkpointer, task, number) for number in range(3, 8)]
    wait_until(lambda: others[-1].state == "ADMITTED" and len(checkpointer.spool.records.ids()) == 4, "four are left")
    assert states([*first, best, *others]) == ["UPLOADING"] * 2 + ["ADMITTED"] + [SUPERSEDED] * 4 + ["ADMITTED"]
    assert "superseded by 0.mfchckpt.4" in str(others[0].error)
    assert "max_pending=4" in str(others[0].error)
    with pytest.raises(StoreError, match="superseded"):
        others[0].wait(10)
    assert others[0].done()
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1, 2, 7]
    assert states([*first, best, others[-1]]) == [COMMITTED] * 4
    assert task.latest()["version_id"] == 7
    wait_until(lambda: os.listdir(checkpointer.spool.path("data")) == [], "what was dropped is given back")


def test_people_hear_of_what_is_dropped(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=1, max_uploads=1, on_backlog="supersede")
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    first = save(checkpointer, task, 0)
    wait_until(lambda: first.state == "UPLOADING", "the first is on its way")
    for number in (1, 2):
        save(checkpointer, task, number)
    wait_until(lambda: said, "there is a line")
    assert said == [
        "Checkpoint 0.mfchckpt.1 was superseded by 0.mfchckpt.2: 2 checkpoints are pending, and max_pending=1"
    ]


def test_what_was_dropped_stays_dropped_after_a_crash(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=1, max_uploads=1, on_backlog="supersede")
    checkpointer = task.start()
    references = [save(checkpointer, task, 0)]
    wait_until(lambda: references[0].state == "UPLOADING", "the first is on its way")
    references += [save(checkpointer, task, number) for number in (1, 2)]
    wait_until(lambda: references[1].state == SUPERSEDED, "the second is dropped")
    kill(agent_pid(checkpointer))
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 2]
    assert references[1].state == SUPERSEDED


def test_what_was_dropped_while_the_journal_could_not_be_written_is_not_called_lost(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, put_content = threading.Event(), LocalStore.put_content

    async def held(store: LocalStore, *arguments: Any) -> Any:
        """The task's gate is for uploaders in processes of their own."""
        while not opened.is_set():
            await anyio.sleep(0.01)
        return await put_content(store, *arguments)

    monkeypatch.setattr(LocalStore, "put_content", held)
    task.set(max_pending=1, max_uploads=1, on_backlog="supersede")
    checkpointer = task.start(uploader="thread")  # So that the agent's journal is in reach.

    def full(*_: object) -> None:
        raise SpoolError("No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    references = [save(checkpointer, task, 0)]
    wait_until(lambda: references[0].state == "UPLOADING", "the first is on its way")
    references += [save(checkpointer, task, number) for number in (1, 2)]
    wait_until(lambda: references[1].state == SUPERSEDED, "the second is dropped")
    wait_until(lambda: references[1].id not in checkpointer.spool.records, "it gives back its place on the disk")
    opened.set()
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 2]


def test_a_disk_that_is_nearly_full_makes_saves_wait_while_that_helps(task: Task, tmp_path: Path) -> None:
    try:
        with small_tmpfs(tmp_path, 64 << 20) as folder:
            gate = task.gate()
            gate.hold("weights")
            task.set(on_backlog="raise")
            checkpointer = task.move_to(folder).start()
            for number in range(2):
                save(checkpointer, task, number)
            (folder / "filler").write_bytes(bytes(60 << 20))
            with pytest.raises(BacklogError, match="min_free_bytes"):
                save(checkpointer, task, 2)
            gate.open("weights")
            checkpointer.flush(60)
            # Nothing is pending: there is nothing to wait for.
            save(checkpointer, task, 3)
            checkpointer.flush(60)
            assert task.committed_versions() == [0, 1, 2]
            checkpointer.close(clean=True)
            wait_until(lambda: not task.processes(), "the agent is gone")
    except CannotMount as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("on_failure", ["raise", "warn"])
def test_the_trainer_hears_of_a_store_that_refuses_at_its_next_save(task: Task, on_failure: str) -> None:
    Path(task.store.root).mkdir(exist_ok=True)
    refusing = Path(task.store.root, "mf.checkpoints")
    refusing.write_bytes(b"a file, where a folder is to be made")
    task.set(on_failure=on_failure)
    gate = task.gate()
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    first = save(checkpointer, task, 0)
    wait_until(lambda: said, "there is a line")
    assert ("the step will fail" in said[0]) == (on_failure == "raise")
    gate.hold("weights")  # Only the first is refused until all is saved.
    if on_failure == "raise":
        with pytest.raises(StoreError, match=r"refuses checkpoints; of 0\.mfchckpt\.0"):
            save(checkpointer, task, 1)
    save(checkpointer, task, 2)
    assert first.error
    gate.open_all()
    wait_until(lambda: len(said) >= 2, "the next one is refused")
    if on_failure == "raise":
        with pytest.raises(StoreError, match=r"refuses checkpoints; of 0\.mfchckpt\.[12]"):
            save(checkpointer, task, 3)
    refusing.unlink()
    checkpointer.close(clean=False)


def test_a_save_in_the_middle_keeps_what_it_was_given(task: Task) -> None:
    """Superseding lets go of leases: what is still wanted of the same inodes is not torn by it."""
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=2, max_uploads=1, on_backlog="supersede")
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, BIG))
    references = [checkpointer.save(task.work, metadata={"number": 0}) for _ in range(5)]
    (task.work / "weights").write_bytes(content(1, BIG))
    gate.open("weights")
    checkpointer.flush(60)
    kept = [reference for reference in references if reference.state == COMMITTED]
    assert references[-1] in kept
    for reference in kept:
        assert task.stored(reference, "weights").read_bytes() == content(0, BIG)

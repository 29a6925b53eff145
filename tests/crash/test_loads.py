"""What was loaded out of the spool shares its inode with the snapshot. It may be rewritten at once: nothing is torn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.writers import WAYS, LocalWriters, RemoteWriters
from harness.tasks.task import Gate, Task, agent_pid, content, kill, wait_until
from tests.spread import spread

SIZE = (1 << 20) + 77

#: All that write into the inode that is there. "rename" makes another one.
IN_PLACE = tuple(way for way in WAYS if way != "rename")


@pytest.fixture
def gate(task: Task) -> Gate:
    made = task.gate()
    made.hold("weights")
    return made


def saved(task: Task, checkpointer: Checkpointer, number: int = 0) -> Reference:
    """A checkpoint whose file nobody but the snapshot has any more."""
    path = task.work / "weights"
    path.write_bytes(content(number, SIZE))
    path.chmod(0o640)
    reference = checkpointer.save(task.work)
    path.unlink()
    return reference


def is_shared(checkpointer: Checkpointer, loaded: Path) -> bool:
    (item,) = checkpointer.spool.records.pending()
    return os.path.samefile(item.file("weights"), loaded)


@pytest.mark.parametrize(
    ("way", "writer", "killed"),
    spread(
        IN_PLACE,
        ["same process", "other process"],
        ["before the write", "never", "after the write", "before the load"],
    ),
)
def test_a_loaded_file_is_rewritten_in_place(task: Task, gate: Gate, way: str, writer: str, killed: str) -> None:
    checkpointer = task.start()
    reference = saved(task, checkpointer)
    loaded = task.base / "loaded" / "weights"
    if killed == "before the load":
        kill(agent_pid(checkpointer))
    checkpointer.load(reference, str(loaded.parent))
    assert loaded.read_bytes() == content(0, SIZE)
    assert loaded.stat().st_mode & 0o777 == 0o640
    assert killed == "before the load" or is_shared(checkpointer, loaded)
    if killed == "before the write":
        kill(agent_pid(checkpointer))
    writers = LocalWriters() if writer == "same process" else RemoteWriters()
    try:
        writers.write(way, loaded, 1, SIZE)
        assert not is_shared(checkpointer, loaded)
        if killed == "after the write":
            kill(agent_pid(checkpointer))
        gate.open("weights")
        reference.wait(60)
        assert task.stored(reference, "weights").read_bytes() == content(0, SIZE)
    finally:
        writers.close()


@pytest.mark.parametrize("killed", [False, True])
def test_the_saver_is_gone_and_its_agent_guards_the_file_already(task: Task, gate: Gate, killed: bool) -> None:
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, SIZE))
    code = f"from async_ckpt.task.checkpointer import Checkpointer as C; C.from_environment().save({str(task.work)!r})"
    subprocess.run([sys.executable, "-c", code], env=task.environment(checkpointer), check=True, timeout=60)
    wait_until(lambda: checkpointer.status()["leases"] == 1, "the agent has the saver's lease")
    (task.work / "weights").unlink()
    (item,) = checkpointer.spool.records.pending()
    loaded = task.base / "loaded" / "weights"
    checkpointer.load(item.reference, str(loaded.parent))
    assert is_shared(checkpointer, loaded)
    if killed:
        kill(agent_pid(checkpointer))
    loaded.write_bytes(content(1, SIZE))
    gate.open("weights")
    checkpointer.flush(60)
    assert task.stored(item.reference, "weights").read_bytes() == content(0, SIZE)
    assert loaded.read_bytes() == content(1, SIZE)


def test_of_two_loads_the_second_gets_a_copy(task: Task, gate: Gate) -> None:
    checkpointer = task.start()
    reference = saved(task, checkpointer)
    one, two = task.base / "one" / "weights", task.base / "two" / "weights"
    for loaded in (one, two):
        checkpointer.load(reference, str(loaded.parent))
    assert is_shared(checkpointer, one)
    assert not os.path.samefile(one, two)
    one.write_bytes(content(1, SIZE))
    assert two.read_bytes() == content(0, SIZE)
    gate.open("weights")
    reference.wait(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, SIZE)


def test_a_file_the_trainer_still_has_is_copied(task: Task, gate: Gate) -> None:
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, SIZE))
    reference = checkpointer.save(task.work)
    checkpointer.load(reference, str(task.base / "loaded"))
    assert not is_shared(checkpointer, task.base / "loaded" / "weights")
    gate.open("weights")
    reference.wait(60)


def test_what_was_loaded_is_saved_again_and_then_rewritten(task: Task, gate: Gate) -> None:
    checkpointer = task.start()
    first = saved(task, checkpointer)
    loaded = task.base / "loaded" / "weights"
    checkpointer.load(first, str(loaded.parent))
    second = checkpointer.save(loaded.parent)
    items = checkpointer.spool.records.pending()
    assert all(os.path.samefile(item.file("weights"), loaded) for item in items)
    loaded.write_bytes(content(1, SIZE))
    third = checkpointer.save(loaded.parent)
    gate.open("weights")
    checkpointer.flush(60)
    for reference, number in ((first, 0), (second, 0), (third, 1)):
        assert task.stored(reference, "weights").read_bytes() == content(number, SIZE)


def test_what_was_loaded_stays_when_the_checkpoint_is_in_the_store(task: Task, gate: Gate) -> None:
    checkpointer = task.start()
    reference = saved(task, checkpointer)
    loaded = task.base / "loaded" / "weights"
    checkpointer.load(reference, str(loaded.parent))
    gate.open("weights")
    reference.wait(60)
    wait_until(lambda: loaded.stat().st_nlink == 1, "the snapshot's link is gone")
    assert checkpointer.status()["leases"] == 0
    loaded.write_bytes(content(1, SIZE))
    assert task.stored(reference, "weights").read_bytes() == content(0, SIZE)


def test_the_next_attempt_starts_without_a_copy(task: Task, gate: Gate) -> None:
    first = task.start()
    reference = saved(task, first)
    kill(agent_pid(first))
    second = task.start(attempt=1)
    loaded = task.base / "loaded" / "weights"
    assert second.load_newest("fresh", str(loaded.parent)) == dict(reference)
    assert loaded.read_bytes() == content(0, SIZE)
    assert is_shared(second, loaded)
    loaded.write_bytes(content(1, SIZE))
    gate.open("weights")
    second.flush(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, SIZE)


def test_in_a_thread_nobody_could_guard_it_so_it_is_copied(task: Task) -> None:
    checkpointer = task.start(uploader="thread")
    reference = saved(task, checkpointer)
    checkpointer.load(reference, str(task.base / "loaded"))
    loaded = task.base / "loaded" / "weights"
    assert loaded.stat().st_nlink == 1
    loaded.write_bytes(content(1, SIZE))
    reference.wait(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, SIZE)


@pytest.mark.parametrize("stored", [False, True], ids=["from the spool", "from the store"])
def test_a_load_into_an_older_state_says_what_stays_and_a_clean_one_leaves_only_the_checkpoint(
    task: Task, gate: Gate, stored: bool
) -> None:
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    reference = saved(task, checkpointer)
    if stored:
        gate.open("weights")
        reference.wait(60)
    loaded = task.base / "loaded"
    loaded.mkdir()
    (loaded / "model-00002-of-00002").touch()
    checkpointer.load(reference, str(loaded))
    (line,) = said
    assert "model-00002-of-00002 is no part of the checkpoint" in line
    checkpointer.load(reference, str(loaded), clean=True)
    assert os.listdir(loaded) == ["weights"]
    assert (loaded / "weights").read_bytes() == content(0, SIZE)
    for folder in (task.base, Path(task.root)):  # With the spool in it, and the store.
        with pytest.raises(UsageError, match="would take away"):
            checkpointer.load(reference, str(folder), clean=True)
    with pytest.raises(UsageError, match="what the others have loaded"):
        checkpointer.load(reference, str(loaded), shard="own", clean=True)
    with pytest.raises(UsageError, match="would take away the others"):
        checkpointer.load(reference, str(loaded), files=["weights"], clean=True)
    with pytest.raises(UsageError, match="is one text"):
        checkpointer.load(reference, str(loaded), files="weights")
    (loaded / "more").touch()
    checkpointer.load(reference, str(loaded), files=["weights"])
    assert len(said) == 1, "of some files, the others may have come before"
    gate.open("weights")
    reference.wait(60)


def test_the_command_loads_clean_as_well(task: Task) -> None:
    checkpointer = task.start()
    reference = saved(task, checkpointer)
    (task.base / "loaded").mkdir()
    (task.base / "loaded/stale").touch()
    command = [sys.executable, "-m", "async_ckpt.cli", "load", reference["key"], str(task.base / "loaded"), "--clean"]
    subprocess.run(command, env=task.environment(checkpointer), check=True, timeout=60)
    assert os.listdir(task.base / "loaded") == ["weights"]
    checkpointer.flush(60)

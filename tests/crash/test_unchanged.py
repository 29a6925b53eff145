"""Files that nobody has touched are copied in the store, without being read. The bytes are always right."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.errors import SnapshotError
from async_ckpt.spool.unchanged import Fingerprint
from async_ckpt.system.filesystems import kind_of, times_tell
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.tasks.task import Task, agent_pid, close_and_kill, content, is_alive, kill, wait_until

#: Large enough to be worth a copy in the store.
FROZEN = 2 << 20


@pytest.fixture(autouse=True)
def _known_by_their_inode_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_ASYNC_CKPT_CONTENT_DIGESTS", "0")
    if Fingerprint.of(str(tmp_path)) is None or not times_tell(kind_of(str(tmp_path))):
        pytest.skip("this file system does not tell unchanged files")


def frozen(task: Task) -> Path:
    """A file that is old enough for its time to tell."""
    path = task.work / "frozen"
    path.write_bytes(content(0, FROZEN))
    settle(path)
    return path


def settle(path: Path) -> None:
    """Wait until a write now would get a time that is clearly later."""
    probe = path.with_name(f"{path.name}.probe")

    def later() -> bool:
        probe.write_bytes(b"")
        return probe.stat().st_mtime_ns > path.stat().st_mtime_ns + 110_000_000

    wait_until(later, "the file's time has passed")
    probe.unlink()


def save(checkpointer: Checkpointer, task: Task, number: int) -> Reference:
    (task.work / "adapter").write_bytes(content(number, 100 << 10))
    return checkpointer.save(task.work, metadata={"number": number}).wait(60)


def copied(checkpointer: Checkpointer) -> int:
    return int(checkpointer.status()["bytes_copied"])


def test_an_unchanged_file_goes_once(task: Task) -> None:
    checkpointer = task.start()
    frozen(task)
    references = [save(checkpointer, task, number) for number in range(4)]
    assert copied(checkpointer) == 3 * FROZEN
    for number, reference in enumerate(references):
        assert task.stored(reference, "frozen").read_bytes() == content(0, FROZEN)
        assert task.stored(reference, "adapter").read_bytes() == content(number, 100 << 10)
        checkpointer.load(dict(reference), str(task.base / f"loaded-{number}"))
        assert (task.base / f"loaded-{number}" / "frozen").read_bytes() == content(0, FROZEN)
    checkpointer.flush(60)


def test_it_is_recognized_by_the_next_agent(task: Task) -> None:
    checkpointer = task.start()
    frozen(task)
    save(checkpointer, task, 0)
    first = agent_pid(checkpointer)
    kill(first)
    wait_until(lambda: not is_alive(first), "the agent is gone")
    reference = save(checkpointer, task, 1)
    assert copied(checkpointer) == FROZEN
    assert task.stored(reference, "frozen").read_bytes() == content(0, FROZEN)


def test_it_is_recognized_by_the_next_attempt(task: Task) -> None:
    first = task.start()
    frozen(task)
    save(first, task, 0)
    close_and_kill(first)
    wait_until(lambda: not task.processes(), "the agent is gone")
    checkpointer = task.start(attempt=1)
    save(checkpointer, task, 1)
    assert copied(checkpointer) == FROZEN


def test_a_source_that_was_deleted_is_no_obstacle(task: Task) -> None:
    checkpointer = task.start()
    frozen(task)
    first = save(checkpointer, task, 0)
    task.stored(first, "frozen").unlink()
    second = save(checkpointer, task, 1)
    assert copied(checkpointer) == 0
    assert task.stored(second, "frozen").read_bytes() == content(0, FROZEN)
    third = save(checkpointer, task, 2)
    assert copied(checkpointer) == FROZEN
    assert task.stored(third, "frozen").read_bytes() == content(0, FROZEN)


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(content(1, FROZEN))


def mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[:] == content(0, FROZEN)  # Each page is read before it is written to.
        memory[:] = content(1, FROZEN)


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(content(1, FROZEN))
    os.replace(new, path)


def truncated(path: Path) -> None:
    path.write_bytes(content(1, FROZEN))


def removed_first(path: Path) -> None:
    """The new file often gets the number of the old one, and gets its times."""
    status = path.stat()
    path.unlink()
    path.write_bytes(content(1, FROZEN))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def one_byte(path: Path) -> None:
    path.write_bytes(content(1, FROZEN))
    with path.open("r+b") as file:
        file.seek(FROZEN - 1)
        file.write(b"\0")


WRITES: tuple[Callable[[Path], None], ...] = (in_place, mapped, replaced, truncated, removed_first, one_byte)


@pytest.mark.parametrize("write", WRITES)
def test_what_was_written_to_is_sent(task: Task, write: Callable[[Path], None]) -> None:
    checkpointer = task.start()
    path = frozen(task)
    save(checkpointer, task, 0)
    write(path)
    expected = path.read_bytes()
    assert expected != content(0, FROZEN)
    reference = save(checkpointer, task, 1)
    assert task.stored(reference, "frozen").read_bytes() == expected
    assert copied(checkpointer) == 0


def test_a_write_in_the_same_tick_of_the_clock_as_the_capture_is_not_missed(task: Task) -> None:
    """It leaves the time as it was."""
    checkpointer = task.start()
    wait_until(lambda: checkpointer.spool.start is not None, "no save waits for that any more")
    path = task.work / "frozen"
    path.write_bytes(content(0, FROZEN))
    written = path.stat().st_mtime_ns
    for number in range(1, 4):
        first = save(checkpointer, task, number)
        in_place(path)
        os.utime(path, ns=(written, written))
        second = save(checkpointer, task, number)
        assert task.stored(first, "frozen").read_bytes() == content(0, FROZEN)
        assert task.stored(second, "frozen").read_bytes() == content(1, FROZEN)
        path.write_bytes(content(0, FROZEN))
        written = path.stat().st_mtime_ns
    assert copied(checkpointer) == 0


@pytest.mark.parametrize("when", ["before it was made", "after it was made"])
def test_a_time_that_is_set_after_every_write_tells_nothing(task: Task, when: str) -> None:
    checkpointer = task.start()
    path = task.work / "frozen"
    path.touch()
    told = 0 if when == "before it was made" else int(path.stat().st_mtime) + 1
    wait_until(lambda: time.time() > told + 0.2, "that time has passed")
    for number in range(3):
        with path.open("r+b") as file:
            file.write(content(number, FROZEN))
        os.utime(path, (told, told))
        reference = save(checkpointer, task, number)
        assert task.stored(reference, "frozen").read_bytes() == content(number, FROZEN)
    assert copied(checkpointer) == 0


def test_a_touched_file_is_sent_once_more(task: Task) -> None:
    checkpointer = task.start()
    path = frozen(task)
    save(checkpointer, task, 0)
    path.touch()
    settle(path)
    references = [save(checkpointer, task, number) for number in (1, 2)]
    assert copied(checkpointer) == FROZEN
    for reference in references:
        assert task.stored(reference, "frozen").read_bytes() == content(0, FROZEN)


@pytest.mark.parametrize("options", [{"snapshot": "copy"}, {"snapshot": "reflink"}, {"storage_format": "tar"}])
def test_what_is_captured_otherwise_is_sent(task: Task, options: dict[str, Any]) -> None:
    checkpointer = task.start()
    frozen(task)
    try:
        for _ in range(2):
            checkpointer.save(task.work, **options).wait(60)
    except SnapshotError as error:
        pytest.skip(f"this file system cannot: {error}")
    assert copied(checkpointer) == 0


def test_in_memory_nothing_is_taken_for_unchanged(task: Task, on_filesystem: Callable[[str], Path]) -> None:
    """A mapping that was only read from becomes writable there without anybody's knowledge."""
    task.move_to(on_filesystem("tmpfs"))
    checkpointer = task.start()
    path = frozen(task)
    save(checkpointer, task, 0)
    mapped(path)
    reference = save(checkpointer, task, 1)
    assert task.stored(reference, "frozen").read_bytes() == content(1, FROZEN)
    assert copied(checkpointer) == 0

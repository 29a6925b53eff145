"""One checkpoint that the store never takes: it is tried for as long as an outage may last, and holds up nobody."""

from __future__ import annotations

import pytest

from async_ckpt.errors import FlushError
from async_ckpt.spool.journal import FAILED
from async_ckpt.system.log import write_lines_with
from harness.kills.preemption import COMMIT_HANGS, FAILS, NO_COMMIT, REFUSED, Preemption, on_disk
from harness.tasks.repeated_saves import save
from harness.tasks.task import Task, close_and_kill, journal_lines, wait_until

_SIZE = 300 << 10


def poisoned(task: Task, monkeypatch: pytest.MonkeyPatch, faults: dict[int, str]) -> None:
    """The store is a directory where these versions fail."""
    task.set(store_attempts=2, store_deadline_s=2)
    with on_disk(Preemption("local", "", 0, 1e9, {}, faults), task, monkeypatch):
        pass


def test_a_store_that_takes_everything_and_keeps_nothing_is_given_up_with_the_reason(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try moves all bytes of it."""
    poisoned(task, monkeypatch, {0: FAILS})
    task.set(outage_s=4)
    checkpointer = task.start()
    (task.work / "other").write_bytes(b"o" * _SIZE)
    for number in range(3):
        save(checkpointer, task, number)
    with pytest.raises(FlushError, match=r"1 checkpoint is not .*\(It was tried for \d+ s, .*: The test fails it"):
        checkpointer.flush(60)
    assert task.committed_versions() == [1, 2]


@pytest.mark.long
def test_others_do_not_wait_for_one_that_fails_by_itself(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(task, monkeypatch, {0: FAILS})
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(3)]
    wait_until(lambda: task.committed_versions() == [1, 2], "the others are committed")
    assert references[0].state in ("ADMITTED", "UPLOADING"), "it is still tried"
    close_and_kill(checkpointer)


@pytest.mark.long
def test_a_commit_that_never_ends_holds_up_others_when_time_is_short_no_more(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(task, monkeypatch, {0: COMMIT_HANGS})
    checkpointer = task.start()
    for number in range(3):
        save(checkpointer, task, number)
    assert checkpointer.hurry(8) == ["0.mfchckpt.0"]
    assert task.committed_versions() == [1, 2]
    close_and_kill(checkpointer)


@pytest.mark.parametrize("fault", [REFUSED, NO_COMMIT])
def test_an_attempt_that_stands_on_what_is_only_on_the_disk_does_not_end_well(
    task: Task, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    poisoned(task, monkeypatch, {1: fault})
    checkpointer = task.start()
    for number in range(2):
        save(checkpointer, task, number)
    with pytest.raises(FlushError):
        checkpointer.flush(60)
    close_and_kill(checkpointer)

    checkpointer = task.start(attempt=1)
    target = task.base / "loaded"
    loaded = checkpointer.load_newest("fresh", str(target))
    assert loaded is not None
    assert loaded["version_id"] == 1
    with pytest.raises(
        FlushError, match=r"0\.mfchckpt\.1 \(saved by an earlier attempt, and nothing newer is in the store"
    ):
        checkpointer.flush(60)
    # It was tried when this attempt began, and again.
    assert len([r for r in journal_lines(checkpointer) if r["id"] == "0.mfchckpt.1" and r.get("state") == FAILED]) >= 2

    (task.base / "weather" / "sitecustomize.py").unlink()
    close_and_kill(checkpointer)
    checkpointer = task.start(attempt=2)
    checkpointer.flush(60)
    assert (0, 1) in task.committed()


def test_what_an_earlier_attempt_lost_is_only_said_where_something_newer_is_in_the_store(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(task, monkeypatch, {0: REFUSED})
    task.set(on_failure="warn")  # Or the next save raises.
    checkpointer = task.start()
    save(checkpointer, task, 0)
    with pytest.raises(FlushError):
        checkpointer.flush(60)
    close_and_kill(checkpointer)
    checkpointer = task.start(attempt=1)
    save(checkpointer, task, 0)
    lines: list[str] = []
    with pytest.raises(FlushError):  # This attempt's is refused as well: it has the same version.
        checkpointer.flush(60)
    save(checkpointer, task, 1)
    with pytest.raises(FlushError):
        checkpointer.flush(60)
    close_and_kill(checkpointer)
    checkpointer = task.start(attempt=2)
    write_lines_with(lines.append)
    checkpointer.flush(60)
    assert len([line for line in lines if "of an earlier attempt is not in the store" in line]) == 2

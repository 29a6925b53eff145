"""What an attempt resumes from, where files of the spool are damaged, locks are held, and ranks are started again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from async_ckpt.errors import SpoolError, WaitTimeout
from async_ckpt.spool.journal import UPLOADED
from async_ckpt.system.files import locked
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import Task, agent_pid, kill, wait_until


def begun(task: Task, *, attempt: int = 0) -> tuple[Checkpointer, Path]:
    """An attempt that has said where it will load, and the file in which it said so."""
    checkpointer = task.start(attempt=attempt)
    checkpointer.resumption.begin(checkpointer.spool.new_work_directory(), "fresh", "all")
    return checkpointer, Path(checkpointer.spool.path("work", f"{attempt}-resume", "attempt.json"))


def save(task: Task, checkpointer: Checkpointer, text: str) -> None:
    (task.work / "model.ckpt").write_text(text)
    checkpointer.save(str(task.work / "model.ckpt"))


def read(checkpointer: Checkpointer) -> str:
    path = checkpointer.resumption.path()
    assert path is not None
    return Path(path).read_text()


def test_a_retry_resumes_from_what_is_still_on_its_way(task: Task) -> None:
    task.gate().hold("model")
    first, _ = begun(task)
    assert first.resumption.path() is None
    save(task, first, "one")
    first.close(clean=False)
    second, _ = begun(task, attempt=1)
    assert read(second) == "one"
    info = second.resumption.info()
    assert info is not None
    assert info["attempt"] == 0


def test_ranks_that_are_started_again_all_get_what_was_newest_then(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    task.gate().hold("model")
    checkpointer, _ = begun(task)
    assert checkpointer.resumption.path() is None
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    save(task, checkpointer, "one")
    assert read(checkpointer) == "one"
    save(task, checkpointer, "two")
    assert read(checkpointer) == "one", "of a start of the ranks it does not change"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert read(checkpointer) == "two"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert checkpointer.resumption.path() is None, "others get what the attempt began with"


@pytest.mark.parametrize("how", ["by torchrun", "by a retry"])
def test_ranks_that_are_started_again_do_not_wait_for_what_is_half_saved(
    task: Task, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    task.set(settle_timeout_s=3600, collective_timeout_s=3600, collective_grace_s=3600)  # None of them is waited for.
    checkpointer, _ = begun(task)
    folders = [task.work / str(rank) for rank in range(2)]
    for rank, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"shard-{rank}").write_text("1")
    saved = [checkpointer.save(folder, collective=True, rank=int(folder.name), world_size=2) for folder in folders]
    saved[0].wait(60)
    half = checkpointer.save(folders[0], collective=True, rank=0, world_size=2)
    wait_until(lambda: half.state == UPLOADED, "it waits for the part of rank 1")
    if how == "by torchrun":
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
            monkeypatch.setenv(name, value)
    else:
        checkpointer.close(clean=False)
        checkpointer, _ = begun(task, attempt=1)
    info = checkpointer.resumption.info()
    assert info is not None
    assert info["version_id"] == saved[0]["version_id"]
    checkpointer.close(clean=False)
    kill(agent_pid(checkpointer))  # It would wait.


def test_whoever_waits_for_another_one_that_loads_gives_up_in_time(task: Task) -> None:
    task.set(gang_start_timeout_s=0.1)
    checkpointer, file = begun(task)
    with locked(f"{file}.lock", timeout_s=1), pytest.raises(WaitTimeout, match=r"has not ended within 0\.1 s"):
        checkpointer.resumption.path()
    assert checkpointer.resumption.path() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"policy": "fresh"}', None])
def test_a_file_that_is_damaged_or_gone_is_named(task: Task, content: bytes | None) -> None:
    checkpointer, file = begun(task)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(SpoolError, match="does not say what this attempt resumes from") as caught:
        checkpointer.resumption.path()
    assert caught.value.where == str(file)


def test_what_cannot_be_noted_is_an_error_and_the_next_one_who_asks_tries_again(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer, file = begun(task)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("async_ckpt.task.resume.write_atomically", full)
        with pytest.raises(SpoolError, match="cannot be noted: No space left on device"):
            checkpointer.resumption.path()
    assert checkpointer.resumption.path() is None
    assert os.path.exists(file)

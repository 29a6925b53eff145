"""Subprocesses whose task has ended, and environments that are not as a task makes them: each says so, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import ENV_ATTEMPT, ENV_SPOOL, Config
from async_ckpt.errors import SpoolError, UsageError
from async_ckpt.spool.spool import Spool
from async_ckpt.task import checkpointer
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import Task, agent_pid, content, is_alive, kill, wait_until


@pytest.fixture
def inherited(task: Task, monkeypatch: pytest.MonkeyPatch) -> Callable[[Checkpointer], Checkpointer]:
    """What a subprocess of the task has."""

    def inherit(owner: Checkpointer) -> Checkpointer:
        for name in (ENV_SPOOL, ENV_ATTEMPT):
            monkeypatch.setenv(name, task.environment(owner)[name])
        return Checkpointer.from_environment()

    return inherit


def end(task: Task, owner: Checkpointer) -> None:
    """The step ends well, and its agent is gone with the spool."""
    agent = agent_pid(owner)
    owner.flush(60)
    owner.close(clean=True)
    wait_until(lambda: not task.spool_exists() and not is_alive(agent), "the agent has left")


def refusals(subprocess: Checkpointer, task: Task, reference: Reference) -> dict[str, str]:
    """What everything a subprocess may ask says."""
    calls: dict[str, Callable[[], Any]] = {
        "save": lambda: save(subprocess, task, 9),
        "list": subprocess.list,
        "flush": lambda: subprocess.flush(5),
        "status": subprocess.status,
        "wait": lambda: reference.wait(5),
        "done": reference.done,
    }
    said = {}
    for name, call in calls.items():
        with pytest.raises(SpoolError) as caught:
            call()
        said[name] = str(caught.value)
    return said


def test_a_subprocess_that_outlives_its_task_is_told_so_by_every_call_and_no_spool_is_made_again(
    task: Task, inherited: Callable[[Checkpointer], Checkpointer]
) -> None:
    owner = task.start()
    subprocess = inherited(owner)
    reference = save(subprocess, task, 0)
    end(task, owner)
    wait_until(lambda: not subprocess._client._connection, "the end was seen")
    for name, said in refusals(subprocess, task, reference).items():
        assert "Attempt 0 of the task Flow/1/train/2 has ended: its spool is gone" in said, name
        assert "let the step wait for its subprocesses" in said, name
        assert "Checkpoint().list(task='Flow/1/train/2')" in said, name
    assert not task.spool_exists()
    assert task.committed_versions() == [0]
    assert task.processes() == []
    # What was to be saved is as it was, also what was to be moved.
    assert (task.work / "weights").read_bytes() == content(9, BIG)


def test_a_new_process_whose_variables_are_stale_is_told_so(
    task: Task, inherited: Callable[[Checkpointer], Checkpointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = task.start()
    monkeypatch.setenv(ENV_SPOOL, owner.spool.directory)
    end(task, owner)
    with pytest.raises(SpoolError) as caught:
        Checkpointer.from_environment()
    assert "has ended: the spool that ASYNC_CKPT_SPOOL names is gone" in str(caught.value)
    assert owner.spool.directory in str(caught.value)
    assert "unset ASYNC_CKPT_SPOOL" in caught.value.hint


def test_a_subprocess_of_an_attempt_that_has_ended_saves_nothing_over_its_checkpoints(
    task: Task, inherited: Callable[[Checkpointer], Checkpointer]
) -> None:
    """The retry has a spool of its own, whose counter begins anew: the same version would be taken again."""
    owner = task.start()
    subprocess = inherited(owner)
    first = save(subprocess, task, 0)
    end(task, owner)
    retry = task.start(attempt=1)
    for name, said in refusals(subprocess, task, first).items():
        assert "Attempt 0 of the task Flow/1/train/2 has ended: attempt 1 runs now" in said, name
    checkpointer._of_process.cache_clear()
    with pytest.raises(SpoolError, match="attempt 1 runs now"):
        Checkpointer.from_environment()
    retry.flush(60)
    assert task.committed() == [(0, 0)]
    assert task.stored(first, "weights").read_bytes() == content(0, BIG)


def test_a_forked_child_that_outlives_its_task_is_told_so(task: Task) -> None:
    """It has the task's own object, which says of itself that it owns the agent."""
    owner = task.start()
    save(owner, task, 0)
    go, told = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.read(go[0], 1)
            try:
                save(owner, task, 1)
                os.write(told[1], b"saved")
            except BaseException as error:  # Or the parent would wait for ever.
                os.write(told[1], f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    end(task, owner)
    os.write(go[1], b"x")
    said = os.read(told[0], 4096).decode()
    os.waitpid(pid, 0)
    for fd in (*go, *told):
        os.close(fd)
    assert said.startswith("SpoolError: ")
    assert "has ended: its spool is gone" in said
    assert not task.spool_exists()


def test_a_subprocess_goes_on_saving_while_the_agent_of_its_task_is_killed(
    task: Task, inherited: Callable[[Checkpointer], Checkpointer]
) -> None:
    """Not every agent that is gone is a task that has ended."""
    owner = task.start()
    subprocess = inherited(owner)
    save(subprocess, task, 0)
    kill(agent_pid(owner))
    save(subprocess, task, 1)
    subprocess.flush(60)
    assert task.committed_versions() == [0, 1]


@pytest.mark.parametrize(
    ("spool", "attempt", "says"),
    [
        ("relative/path", "0", "ASYNC_CKPT_SPOOL='relative/path' is not an absolute path"),
        ("here", "first", "ASYNC_CKPT_ATTEMPT='first' is not the number of an attempt"),
        ("here", "-1", "ASYNC_CKPT_ATTEMPT='-1' is not the number of an attempt"),
        ("here", "", "ASYNC_CKPT_ATTEMPT='' is not the number of an attempt"),
        ("here", "²", "ASYNC_CKPT_ATTEMPT='²' is not the number of an attempt"),
        ("here", "9" * 30, "is not the number of an attempt"),
    ],
)
def test_variables_that_no_task_sets_are_named(
    task: Task, monkeypatch: pytest.MonkeyPatch, spool: str, attempt: str, says: str
) -> None:
    owner = task.start()
    monkeypatch.setenv(ENV_SPOOL, owner.spool.directory if spool == "here" else spool)
    monkeypatch.setenv(ENV_ATTEMPT, attempt)
    with pytest.raises(UsageError) as caught:
        Checkpointer.from_environment()
    assert says in str(caught.value)
    assert "inherits what the step has" in caught.value.hint


def test_a_spool_that_is_a_file_or_damaged_is_a_clear_error(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    (folder / "spool.json").write_text("{")
    monkeypatch.setenv(ENV_SPOOL, str(file))
    with pytest.raises(SpoolError, match="has ended"):
        Checkpointer.from_environment()
    monkeypatch.setenv(ENV_SPOOL, str(folder))
    with pytest.raises(SpoolError, match="Not a spool of this version"):
        Checkpointer.from_environment()
    assert os.listdir(folder) == ["spool.json"]


def test_the_spool_of_a_killed_task_can_still_be_worked_on_by_name(task: Task) -> None:
    """``async-ckpt --spool`` belongs to no attempt of its own."""
    owner = task.start()
    save(owner, task, 0)
    owner.flush(60)
    named = Checkpointer(Spool.open(owner.spool.directory), Config.from_env())
    assert named.status()["committed"] == 1
    named.close(clean=False)

"""Agents that die again and again, hang, or cannot be started: whoever waits for them goes on to its own limit."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.errors import FlushError, SpoolError
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.repeated_saves import BIG, assert_all_in_order, save
from harness.tasks.task import Task, agent_pid, close_and_kill, content, is_alive, kill, wait_until

#: Short, but long enough for a busy machine to let an agent's thread run once.
HUNG_S = 2


def test_a_flush_ends_an_agent_that_hangs_and_goes_on_with_another_one(task: Task) -> None:
    task.set(hung_s=HUNG_S)
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    references = [save(checkpointer, task, 0)]
    checkpointer.status()
    hung = agent_pid(checkpointer)
    kill(hung, signal.SIGSTOP)
    references.append(save(checkpointer, task, 1))
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert not is_alive(hung)
    (line,) = [line for line in lines if "has not answered" in line]
    assert f"pid {hung}" in line
    assert "state T" in line


@pytest.mark.long
def test_an_agent_that_hangs_while_nobody_asks_it_anything_is_replaced_as_well(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task trains for hours without a save: what it has saved is to be stored meanwhile."""
    monkeypatch.setattr("async_ckpt.ipc.client.PING_S", 1.0)
    task.set(hung_s=HUNG_S)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    checkpointer.status()
    kill(agent_pid(checkpointer), signal.SIGSTOP)
    gate.open("weights")
    wait_until(lambda: task.committed_versions() == [0], "another agent has brought it in")


def save_and_leave_a_stopped_agent(checkpointer: Checkpointer, task: Task) -> int:
    """The attempt ends while its agent is stopped, whose pid this returns."""
    save(checkpointer, task, 0)
    checkpointer.status()
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    checkpointer.close(clean=False)
    return agent


def test_the_next_attempt_takes_over_from_an_agent_that_hangs(task: Task) -> None:
    task.set(hung_s=HUNG_S, reply_timeout_s=1)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    hung = save_and_leave_a_stopped_agent(checkpointer, task)
    lines: list[str] = []
    gate.open("weights")
    checkpointer = task.start(attempt=1, report=lines.append)
    checkpointer.flush(60)
    assert task.committed() == [(0, 0)]
    assert not is_alive(hung)
    assert [line for line in lines if f"pid {hung}" in line]


@pytest.mark.long
def test_one_that_hangs_and_cannot_be_found_by_its_socket_is_found_by_its_lock(task: Task) -> None:
    task.set(hung_s=HUNG_S, reply_timeout_s=1)
    checkpointer = task.start()
    hung = save_and_leave_a_stopped_agent(checkpointer, task)
    for name in ("agent.sock", "agent.pid"):
        Path(checkpointer.spool.path(name)).unlink()
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert task.committed() == [(0, 0)]
    assert not is_alive(hung)


@pytest.mark.long
def test_an_agent_that_was_stopped_for_a_moment_is_not_ended(task: Task) -> None:
    task.set(reply_timeout_s=2)
    checkpointer = task.start()
    references = [save(checkpointer, task, 0)]
    checkpointer.status()
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    # The keeper asks, and waits, for longer than an answer ever takes.
    references.append(save(checkpointer, task, 1))
    with pytest.raises(FlushError):
        checkpointer.flush(0)
    kill(agent, signal.SIGCONT)
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert checkpointer.status()["pid"] == agent


def test_a_flush_goes_on_through_any_number_of_deaths(task: Task) -> None:
    task.set(agent_pause_s=0.5)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(3)]
    killed: set[int] = set()
    while len(killed) < 8:
        pid = wait_until(lambda: {agent_pid(checkpointer)} - killed, "there is another agent").pop()
        wait_until(lambda pid=pid: kill(pid), "it is killed")
        killed.add(pid)
    gate.open("weights")
    checkpointer.flush(120)
    assert_all_in_order(task, references)


def test_where_no_agent_can_be_started_the_flush_uploads_by_itself_and_says_so_once(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.set(agent_patience_s=2, agent_pause_s=0.5, progress_s=0.5)
    monkeypatch.setattr("async_ckpt.agent.agent.CALM_S", 1.0)
    gate = task.gate()
    gate.hold("weights")
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    references = [save(checkpointer, task, 0)]
    checkpointer.status()
    executable = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # The environment was removed under the run.
    kill(agent_pid(checkpointer))
    references.append(save(checkpointer, task, 1))
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert (
        checkpointer.status()["pid"] == checkpointer.status()["uploader_pid"]
        or checkpointer.status()["uploader_pid"] is None
    )
    (said,) = [line for line in lines if "this process uploads by itself" in line]
    assert "/nowhere/python" in said
    assert [line for line in lines if line.startswith("waiting for the agent")]
    monkeypatch.setattr(sys, "executable", executable)
    wait_until(lambda: checkpointer.status()["pid"] != os.getpid(), "there is an agent again")


def test_the_same_where_every_agent_dies_before_its_first_word(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that starts, and finds its library no more."""
    task.set(agent_patience_s=2, agent_pause_s=0.5)
    false = task.base / "python"
    false.write_text("#!/bin/sh\necho 'no module named os'\nexit 1\n")
    false.chmod(0o755)
    lines: list[str] = []
    monkeypatch.setattr(sys, "executable", str(false))
    checkpointer = task.start(report=lines.append)
    references = [save(checkpointer, task, 0)]
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    (said,) = [line for line in lines if "this process uploads by itself" in line]
    assert "no module named os" in said


@pytest.mark.long
def test_where_one_in_a_thread_ends_at_once_as_well_it_is_tried_with_pauses_and_a_flush_keeps_its_limit(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that has used up its descriptors."""
    task.set(agent_patience_s=0.5, agent_pause_s=0.5, progress_s=0.5)
    gate = task.gate()
    gate.hold("weights")
    lines: list[str] = []
    begun: list[float] = []

    def lacks_descriptors(*args: object, **options: object) -> None:
        begun.append(time.monotonic())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    checkpointer = task.start(report=lines.append)
    references = [save(checkpointer, task, 0)]
    checkpointer.status()
    with monkeypatch.context() as lacking:
        lacking.setattr("async_ckpt.agent.agent.Agent.__init__", lacks_descriptors)
        lacking.setattr(sys, "executable", "/nowhere/python")
        kill(agent_pid(checkpointer))
        with pytest.raises(FlushError, match="Too many open files"):
            checkpointer.flush(4)
    assert 1 < len(begun) < 50
    assert len([line for line in lines if "this process uploads by itself" in line]) == 1
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_in_order(task, references)


def test_a_failed_flush_says_which_agent_stays_and_for_how_long(task: Task) -> None:
    task.set(drain_timeout_s=1800)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    checkpointer.status()
    with pytest.raises(FlushError) as caught:
        checkpointer.flush(0.1)
    assert re.search(rf"pid {agent_pid(checkpointer)}\) goes on .* up to 1800 s", str(caught.value))
    close_and_kill(checkpointer)


def test_a_flush_by_hand_says_how_it_stands(task: Task) -> None:
    task.set(progress_s=0.1)
    gate = task.gate()
    gate.hold("weights")
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    save(checkpointer, task, 0)
    with pytest.raises(FlushError):
        checkpointer.flush(1.5)
    progress = [line for line in lines if line.startswith("left: 1 checkpoint")]
    assert 2 <= len(progress) <= 15, "they become rarer"
    gate.open("weights")
    checkpointer.flush(60)


def test_a_subprocess_whose_task_has_ended_does_not_wait_for_an_agent(task: Task) -> None:
    checkpointer = task.start()
    other = type(checkpointer)(type(checkpointer.spool).open(checkpointer.spool.directory), checkpointer.config)
    checkpointer.close(clean=True)
    wait_until(lambda: not task.spool_exists(), "the agent has taken the spool away")
    with pytest.raises(SpoolError, match="has ended"):
        other.flush(3600)


@pytest.mark.long
def test_a_file_system_that_does_not_answer_holds_up_only_what_lies_there(
    task: Task, on_filesystem: Callable[[str], Path]
) -> None:
    """A network disk that is gone: whoever looks there does not come back, the agent as the one after it."""
    folder = on_filesystem("fuse")
    task.set(hung_s=HUNG_S, reply_timeout_s=1)
    server = _server_of(folder)
    gate = task.gate()
    gate.hold("there")
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    (folder / "work").mkdir()
    (folder / "work" / "there").write_bytes(content(0, BIG))
    checkpointer.save(folder / "work")
    assert checkpointer.spool.snapshots.annexes()
    checkpointer.status()
    kill(server, signal.SIGSTOP)
    try:
        (task.work / "here").write_bytes(content(1, BIG))
        checkpointer.save(task.work)
        wait_until(lambda: task.committed_versions() == [1], "what lies elsewhere is stored")
        with pytest.raises(FlushError, match="does not answer"):
            checkpointer.flush(0)
    finally:
        kill(server, signal.SIGCONT)
    gate.open("there")
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]
    assert len([line for line in lines if "does not answer: what lies there" in line]) == 1


def _server_of(folder: Path) -> int:
    """The process that answers for a FUSE mount."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = [os.fsdecode(word) for word in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")]
            if words[0].endswith("bindfs") and any(str(folder).startswith(word) for word in words[1:] if word):
                return int(name)
    raise AssertionError("nobody serves the mount")

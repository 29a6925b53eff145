"""Links that nobody holds a lease of any more, as who captured them and the agent are dead: the next agent takes leases
of its own, so that what still stands is guarded again.
"""

from __future__ import annotations

import mmap
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.repeated_saves import BIG, save_and_die
from harness.tasks.task import Gate, Task, agent_pid, content, kill, wait_until
from tests.spread import spread


def _rewrite(path: Path) -> None:
    path.write_bytes(content(99, BIG))


def _rewrite_through_a_mapping(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:BIG] != content(99, BIG)  # What was read before may be written to without a new time.
        mapped[:BIG] = content(99, BIG)


def assert_stored_as_saved(task: Task, gate: Gate, checkpointer: Checkpointer) -> None:
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed() == [(0, 0)]
    (stored,) = Path(task.store.root).rglob("weights")
    assert stored.read_bytes() == content(0, BIG)


@pytest.mark.parametrize(("kind", "rewrite"), spread(["disk", "tmpfs"], [_rewrite, _rewrite_through_a_mapping]))
def test_a_retry_may_rewrite_what_the_last_attempt_has_left_waiting(
    task: Task, on_filesystem: Callable[[str], Path], kind: str, rewrite: Callable[[Path], None]
) -> None:
    task.move_to(on_filesystem(kind))
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 1, "both")
    checkpointer = task.start(attempt=1)
    rewrite(task.work / "weights")
    assert_stored_as_saved(task, gate, checkpointer)


def test_a_checkpoint_of_a_subprocess_that_has_ended_outlives_the_agent(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, BIG))
    save = [sys.executable, "-m", "async_ckpt.cli", "save", str(task.work)]
    subprocess.run(save, env=task.environment(checkpointer), check=True, stdout=subprocess.DEVNULL)
    before = agent_pid(checkpointer)
    kill(before, signal.SIGKILL)
    wait_until(lambda: checkpointer.status()["pid"] != before, "another agent is there")
    _rewrite(task.work / "weights")
    assert_stored_as_saved(task, gate, checkpointer)


def test_what_is_open_for_writing_while_nobody_guards_it_is_not_stored_where_times_do_not_tell(
    task: Task, on_filesystem: Callable[[str], Path]
) -> None:
    task.move_to(on_filesystem("tmpfs"))
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 1, "both")
    with open(task.work / "weights", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:4] != b"torn"  # What was read before may be written to without a new time.
        mapped[:4] = b"torn"
        checkpointer = task.start(attempt=1)
    gate.open("weights")
    said: list[str] = []
    write_lines_with(said.append)
    checkpointer.flush(60)
    assert task.committed() == []
    assert any("weights may have been written to" in line for line in said)


_SAVE_AND_DIE_BEFORE_THE_DOORBELL = """
import os, signal, sys
from async_ckpt.ipc.client import AgentClient
from async_ckpt.task.checkpointer import Checkpointer
AgentClient.announce = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Checkpointer.from_environment().save(sys.argv[1])
"""


def test_a_checkpoint_of_a_subprocess_that_died_before_it_could_hand_over_leases_is_guarded(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, BIG))
    save = [sys.executable, "-c", _SAVE_AND_DIE_BEFORE_THE_DOORBELL, str(task.work)]
    subprocess.run(save, env=task.environment(checkpointer), check=False)
    wait_until(lambda: checkpointer.status()["pending"], "the agent has found it")
    _rewrite(task.work / "weights")
    assert_stored_as_saved(task, gate, checkpointer)

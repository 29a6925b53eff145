"""What would be lost now, as a task's real agent says it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from async_ckpt.spool import recovery
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.repeated_saves import save
from harness.tasks.task import Task, agent_pid, kill, wait_until


def exposure(checkpointer: Checkpointer) -> dict[str, Any]:
    found: dict[str, Any] = checkpointer.status()["exposure"]
    return found


def test_status_says_what_would_be_lost_also_after_the_agent_has_died(task: Task) -> None:
    gate = task.gate()
    before = time.monotonic()
    checkpointer = task.start()
    began = time.monotonic()
    save(checkpointer, task, 0).wait(60)
    stored = exposure(checkpointer)
    assert 0 <= stored["process_s"] <= stored["machine_s"] <= time.monotonic() - began
    assert (stored["saves"], stored["next_durable_s"]) == (0, None)
    assert stored["next_durable_why"] == "nothing waits for the store"
    gate.hold("weights")
    save(checkpointer, task, 1)
    held = exposure(checkpointer)
    assert held["process_s"] < held["machine_s"]
    assert held["saves"] == 1
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)  # It would write it again.
    os.unlink(checkpointer.spool.path(recovery.NAME))
    kill(agent)
    # Nothing is known any more but when the attempt began: more counts as lost, never less.
    asked, forgotten = time.monotonic(), exposure(checkpointer)
    assert forgotten["saves"] == 1
    assert asked - began <= forgotten["machine_s"] <= time.monotonic() - before
    wait_until(lambda: recovery.read(checkpointer.spool.directory).began, "the new agent has written it down")
    gate.open("weights")
    checkpointer.flush(60)
    assert exposure(checkpointer)["machine_s"] < time.monotonic() - began


def test_an_agent_that_is_started_again_knows_what_is_in_the_store(task: Task) -> None:
    checkpointer = task.start()
    save(checkpointer, task, 0).wait(60)
    wait_until(lambda: recovery.read(checkpointer.spool.directory).latest.reached == (0, 0), "it is written down")
    since = recovery.read(checkpointer.spool.directory).latest.since
    kill(agent_pid(checkpointer))
    checkpointer.status()
    assert recovery.read(checkpointer.spool.directory).latest.since == since
    assert checkpointer.lost_with_machine_s() >= exposure(checkpointer)["process_s"] - 1


def test_max_exposure_is_said_once_where_it_is_exceeded_and_once_when_it_is_kept_again(task: Task) -> None:
    said: list[str] = []
    task.set(max_exposure_s=3600, rescan_s=0.05)
    checkpointer = task.start(report=said.append)
    save(checkpointer, task, 0).wait(60)
    assert not said
    checkpointer.close(clean=False)
    task.set(max_exposure_s=0.3)
    checkpointer = task.start(report=said.append, attempt=1)
    wait_until(lambda: said, "nothing was saved for too long")
    assert "max_exposure=0.3 s is exceeded: the work of the last" in said[0]
    assert said[0].endswith("nothing was saved since")
    wait_until(lambda: recovery.read(checkpointer.spool.directory).is_exceeded, "the next agent knows that it was said")
    kill(agent_pid(checkpointer))
    # Once in the store, each is too old in a moment: as often as it takes until one is seen in time.
    wait_until(lambda: (save(checkpointer, task, 1).wait(60), len(said) > 1)[1], "it is over")
    assert "max_exposure is kept again" in said[1]


def test_the_end_of_the_machine_is_told_with_what_would_be_lost(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    said: list[str] = []
    task.set(termination_grace_s=50)
    checkpointer = task.start(report=said.append)
    save(checkpointer, task, 0)
    kill(agent_pid(checkpointer), signal.SIGTERM)
    wait_until(lambda: any("would be lost with this machine" in line for line in said), "it is said")
    assert any(
        "told (SIGTERM): the work of the last" in line and "1 save is only on this disk" in line for line in said
    )
    wait_until(lambda: list(recovery.read(checkpointer.spool.directory).ends) == ["SIGTERM"], "the next agent knows it")
    gate.open("weights")
    checkpointer.flush(60)


def test_a_notice_makes_a_save_due_in_all_processes_until_one_of_them_has_saved(task: Task) -> None:
    notice = task.base / "notice"
    task.set(spot_notice_file=notice)
    checkpointer = task.start()
    other = Checkpointer(task.spool, checkpointer.config)
    task.take(other)
    save(checkpointer, task, 0)
    both = (checkpointer, other)
    assert not any(one.due(3600, None) for one in both)
    notice.write_text("TRUE")
    wait_until(lambda: all(one.due(3600, None) for one in both), "both hear of it")
    save(other, task, 1)
    wait_until(lambda: not any(one.due(3600, None) for one in both), "one of them has saved")
    checkpointer.flush(60)
    wait_until(lambda: len(recovery.read(checkpointer.spool.directory).upload_s) == 2, "both were measured")


def test_after_a_sigterm_a_save_is_due_in_the_task_at_once(task: Task) -> None:
    checkpointer = task.start()
    assert not checkpointer.due(3600, None)
    checkpointer.hurry(1)
    assert checkpointer.due(3600, None)
    save(checkpointer, task, 0)
    assert not checkpointer.due(3600, None)


_RANK = """
import sys, time
from async_ckpt.task.checkpointer import Checkpointer
checkpointer, saves = Checkpointer.from_environment(), []
for call in range(60):
    time.sleep(0.01 if sys.argv[1] == "0" else 0.005)
    if checkpointer.due(0.2, True):
        saves.append(call)
        checkpointer.save(sys.argv[2], collective=True, snapshot="copy")
print(saves)
"""


def test_ranks_in_processes_of_their_own_save_in_the_same_steps(task: Task) -> None:
    checkpointer = task.start()
    ranks = []
    for rank in range(2):
        (task.work / f"{rank}").mkdir()
        (task.work / f"{rank}" / f"shard-{rank}").write_text(str(rank))
        environment = {**task.environment(checkpointer), "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", _RANK, str(rank), str(task.work / f"{rank}")]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert said[0] == said[1] != "[]\n"
    checkpointer.flush(60)
    assert len(task.committed_versions()) == said[0].count(",") + 1

"""An agent that is stopped holds nobody up for the kernel's 45 seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from async_ckpt.errors import WaitTimeout
from async_ckpt.ipc import client
from async_ckpt.system import undisturbed
from harness.tasks.repeated_saves import BIG, assert_all_in_order, save
from harness.tasks.task import Task, agent_pid, content, kill, wait_until


def test_a_trainer_that_rewrites_in_place_is_let_go_by_its_own_keeper_while_the_agent_hangs(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    references = [save(checkpointer, task, 0)]
    assert checkpointer.status()["leases"] > 0
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        (task.work / "weights").write_bytes(content(7, BIG))
        held_s = time.monotonic() - begun
    finally:
        kill(agent, signal.SIGCONT)
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    # Not a measure of speed: either the keeper answered, or the kernel broke the lease after its own limit.
    assert held_s < 40


def test_a_question_that_is_interrupted_just_before_it_waits_ends_at_once(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = task.start()
    checkpointer.status()
    real = undisturbed.ended_by

    def late(end: Callable[[], object]) -> AbstractContextManager[None]:
        call = undisturbed._here.call
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: call is None or call.abandoned, "nobody waits for it any more")
        return real(end)

    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    try:
        monkeypatch.setattr(client, "ended_by", late)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            checkpointer.status()
        assert time.monotonic() - begun < undisturbed.INTERRUPTED_END_S / 2
    finally:
        kill(agent, signal.SIGCONT)


def test_a_spool_that_was_gone_for_a_moment_as_an_attempt_began_is_made_anew(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last attempt's agent hung while it removed it, and went on."""
    attach, exists = client.AgentClient.attach, os.path.exists
    happened: list[str] = []

    def hangs_first(self: client.AgentClient, timeout_s: float) -> None:
        if not happened:
            happened.append("hung")
            raise WaitTimeout("The agent did not answer 'state' within 2 s")
        attach(self, timeout_s)

    def is_gone_then(path: str) -> bool:
        if happened == ["hung"] and path.endswith("spool.json"):
            happened.append("gone")
            return False
        return exists(path)

    monkeypatch.setattr(client.AgentClient, "attach", hangs_first)
    monkeypatch.setattr(os.path, "exists", is_gone_then)
    checkpointer = task.start()
    assert happened == ["hung", "gone"]
    references = [save(checkpointer, task, 0)]
    checkpointer.flush(60)
    assert_all_in_order(task, references)

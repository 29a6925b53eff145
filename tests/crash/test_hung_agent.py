"""An agent that is stopped holds nobody up for the kernel's 45 seconds."""

from __future__ import annotations

import signal
import time

from ..support.agents import Task, agent_pid, content, kill
from ..support.scenes import BIG, assert_all_in_order, save


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

"""The first part of ``python -m stress.fuzz``: an agent under attack, and what it must not lose by that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.errors import CheckpointError
from async_ckpt.task.checkpointer import Checkpointer
from harness.hostile.client import descriptors_of, memory_of
from harness.tasks.many_savers import as_stored, save_some
from harness.tasks.task import Task, agent_pid, is_alive, journal_lines
from stress.fuzzing.attack import Attack, Came
from stress.fuzzing.trainer import Trainer

#: Bytes by which the agent's memory may grow from the first tenth of the attack to its end: its heap has holes by then.
_MAX_GROWTH = 32 << 20

#: How long the agent may take to close what was left open, and to commit what was saved, in seconds.
_CALM_S, _FLUSH_S = 30.0, 300.0

#: Without one more frame for so long, it is over; and how often it is said how far it is.
_STUCK_S, _SAY_S = 180.0, 15.0

Say = Callable[[str], None]


@dataclass
class Siege:
    """What came of it; ``violations`` says in words what must not be."""

    frames: int = 0
    seconds: float = 0.0
    came: Came = field(default_factory=Came)
    saves: int = 0
    committed: int = 0
    slowest_save_s: float = 0.0
    slowest_status_s: float = 0.0
    descriptors: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)
    violations: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """A line of the report's table."""
        return {
            "attack": f"{self.frames:,} frames, {self.came.visits.total():,} connections",
            "seconds": f"{self.seconds:.0f}",
            "saves committed beside it": f"{self.committed} of {self.saves}",
            "slowest save, status": f"{self.slowest_save_s * 1000:.0f}, {self.slowest_status_s * 1000:.0f} ms",
            "descriptors before, after": f"{self.descriptors[0]}, {self.descriptors[1]}",
            "memory before, after": f"{self.memory[0] / 2**20:.1f}, {self.memory[1] / 2**20:.1f} MiB",
            "violations": len(self.violations),
        }


def besiege(base: Path, seed: int, frames: int, processes: int, say: Say) -> Siege:
    """Let ``processes`` intruders send so many frames to the agent of a task that goes on saving."""
    siege, attack = Siege(), Attack(seed, frames, processes)
    with pytest.MonkeyPatch.context() as patch:
        task = Task(base, patch)
        task.set(local_fsync="off")
        checkpointer = task.start()
        # All is set up once the first checkpoint is in the store.
        saved = save_some(checkpointer, task.work / "first", 0, 1)
        checkpointer.flush(_FLUSH_S)
        agent = agent_pid(checkpointer)
        siege.descriptors = (descriptors_of(agent), 0)
        trainer = Trainer(checkpointer, task.work / "own")
        trainer.start()
        attack.begin(checkpointer.spool.directory)
        begun = time.monotonic()
        try:
            _watch(siege, attack, checkpointer, agent, frames, say)
        finally:
            siege.frames, siege.seconds = attack.sent, time.monotonic() - begun
            siege.came = attack.end()
            trainer.over.set()
            trainer.join()
        siege.slowest_save_s, siege.slowest_status_s = trainer.slowest_save_s, trainer.slowest_status_s
        siege.violations += sorted(set(siege.came.complaints + trainer.complaints))
        _look_at_the_store(siege, task, checkpointer, saved + trainer.saved)
        _look_at_the_agent(siege, checkpointer, agent)
        if left := task.close():
            siege.violations.append(f"Processes were left behind: {left}")
    return siege


def _watch(siege: Siege, attack: Attack, checkpointer: Checkpointer, agent: int, frames: int, say: Say) -> None:
    """Until the intruders are through, or there is nothing left to attack."""
    last, moved, said = 0, time.monotonic(), time.monotonic()
    while attack.goes_on():
        time.sleep(0.2)
        now, sent = time.monotonic(), attack.sent
        if sent > last:
            last, moved = sent, now
        if not is_alive(agent):
            siege.violations.append("The agent died")
            return
        if not siege.memory[0] and sent >= frames // 10:
            siege.memory = (memory_of(agent), 0)
        if now - moved > _STUCK_S:
            siege.violations.append(f"Not one frame more within {_STUCK_S:g} s")
            return
        if now - said > _SAY_S:
            said = now
            say(f"{sent:,} frames, agent {memory_of(agent) / 2**20:.1f} MiB, {descriptors_of(agent)} descriptors")


def _look_at_the_store(siege: Siege, task: Task, checkpointer: Checkpointer, saved: list[dict[str, Any]]) -> None:
    try:
        checkpointer.flush(_FLUSH_S)
    except CheckpointError as error:
        siege.violations.append(f"{type(error).__name__}: {error}")
    versions = set(task.committed_versions())
    siege.saves, siege.committed = len(saved), len(versions)
    for reference in saved:
        whole = reference["version_id"] in versions and as_stored(task.store.root, reference)
        if not whole:
            siege.violations.append(f"Version {reference['version_id']} is not in the store, or not what was saved")
    known = {f"0.{reference['name']}.{reference['version_id']}" for reference in saved}
    if strange := {line["id"] for line in journal_lines(checkpointer) if "id" in line} - known:
        siege.violations.append(
            f"The journal has {len(strange)} checkpoints nobody saved, such as {min(strange)[:80]!r}"
        )


def _look_at_the_agent(siege: Siege, checkpointer: Checkpointer, agent: int) -> None:
    log = Path(checkpointer.spool.path("agent.log"))
    if log.exists() and "Traceback" in (text := log.read_text(errors="replace")):
        where = [line.strip() for line in text.splitlines() if line.startswith('  File "')]
        siege.violations.append(
            f"The agent's log ends with {text.splitlines()[-1][:200]!r}, {' < '.join(where[::-1][:3])}"
        )
    if not is_alive(agent) or agent_pid(checkpointer) != agent:
        siege.violations.append("It is not the agent any more that it was")
        return
    until = time.monotonic() + _CALM_S
    while (count := descriptors_of(agent)) > siege.descriptors[0] and time.monotonic() < until:
        time.sleep(0.1)
    siege.descriptors = (siege.descriptors[0], count)
    if count > siege.descriptors[0]:
        siege.violations.append(f"The agent has {count} descriptors, {siege.descriptors[0]} before")
    siege.memory = (siege.memory[0], memory_of(agent))
    if siege.memory[1] - siege.memory[0] > _MAX_GROWTH:
        siege.violations.append("The agent's memory grew from {:,} to {:,} bytes".format(*siege.memory))
    with contextlib.suppress(CheckpointError):
        status = checkpointer.status()
        if status["pending"] or status["failed_count"] or status["leases"]:
            siege.violations.append(f"The agent's status is {status}"[:1000])

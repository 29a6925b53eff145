"""A few thousand hostile frames and checkpoints of ``python -m stress.fuzz``, with seeds that do not change."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.hostile.client import KINDS, Intruder, descriptors_of
from harness.hostile.frames import Descriptors, Frames
from harness.hostile.loads import Hostile, Place
from harness.tasks.many_savers import as_stored, save_some
from harness.tasks.task import Task, agent_pid, is_alive, journal_lines, wait_until
from tests.spread import first_of

FRAMES = 12_000
LOADS = 800


@pytest.mark.parametrize("seed", first_of([1, 2]))
def test_nothing_that_is_sent_to_an_agent_ends_it_or_is_kept_by_it(task: Task, seed: int) -> None:
    checkpointer = task.start()
    saved = save_some(checkpointer, task.work / "own", 0, 1)
    checkpointer.flush(60)
    agent, random_ = agent_pid(checkpointer), random.Random(seed)
    before, log = descriptors_of(agent), Path(checkpointer.spool.path("agent.log"))
    frames = Frames(random_, [f"0.{saved[0]['name']}.{saved[0]['version_id']}"], ["weights", "step"])
    with Descriptors() as fds:
        intruder = Intruder(checkpointer.spool.path("agent.sock"), frames, fds, random_)
        try:
            while intruder.sent < FRAMES // 2:
                intruder.visit(talk=100)
                assert is_alive(agent), log.read_text()[-2000:]
            for kind in KINDS.keys() - intruder.visits.keys():
                intruder.visit(kind)
        finally:
            intruder.close()
    saved += save_some(checkpointer, task.work / "own", 1, 1)
    checkpointer.flush(60)
    assert all(as_stored(task.store.root, reference) for reference in saved)
    assert agent_pid(checkpointer) == agent
    assert "Traceback" not in log.read_text()
    status = checkpointer.status()
    assert (status["pending"], status["failed_count"], status["leases"]) == (0, 0, 0)
    assert {line["id"] for line in journal_lines(checkpointer)} == {"0.mfchckpt.0", "0.mfchckpt.1"}
    wait_until(lambda: descriptors_of(agent) <= before, "the agent has closed what it was sent")


@pytest.fixture
def place() -> Iterator[Place]:
    """In memory, where there is such a place: thousands of files are made and removed."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="async-ckpt-test-", dir=memory) as base:
        yield Place(Path(base))


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_that_is_loaded_does_harm(place: Place, seed: int) -> None:
    hostile, harm, loaded = Hostile(place, random.Random(seed)), Counter[tuple[str, str]](), Counter[bool]()

    async def load() -> None:
        for _ in range(LOADS // 2):
            kind, one = hostile.next()
            was_loaded, found = await place.attempt(one)
            loaded[was_loaded] += 1
            harm.update((kind, what) for what in found)

    asyncio.run(load())
    assert not harm
    assert min(loaded[True], loaded[False]) > LOADS // 20, "it is no test of anything if all, or none, can be loaded"

"""What ends an outage of the store, as one checkpoint sees it, and what does not."""

from __future__ import annotations

import pytest

from async_ckpt.agent.job import Job
from async_ckpt.agent.queue import Queue
from async_ckpt.config import OUTAGE_PAUSE_S


class Scene:
    """One checkpoint that the store does not take, and the time."""

    def __init__(self) -> None:
        self.now, self.queue = 1000.0, Queue(1)
        self.job: Job = self.queue.add("a", (0, 0), 10)

    def fail(self, stored: int) -> float:
        """Returns for how long it has been failing."""
        lasted_s = self.job.store_failed(self.now, stored)
        self.queue.pause("a", self.now + self.job.outage.left_s(self.now))
        return lasted_s

    def sit_out(self, most_s: float = float("inf")) -> float:
        """Returns how long the pause was."""
        begun = self.now
        while self.queue.resume_due(self.now, most_s) or self.job.is_paused:
            self.now += 0.5
        return self.now - begun


@pytest.mark.parametrize("stored", [[0], [8, 0], [5, 3, 8, 1]], ids=["nothing", "lost again", "some of it lost again"])
def test_only_what_is_newly_stored_ends_it_and_pauses_grow_until_then(stored: list[int]) -> None:
    scene, pauses = Scene(), []
    for number in range(10_000):
        lasted_s = scene.fail(stored[number % len(stored)])
        if lasted_s >= 1800:
            break
        pauses.append(scene.sit_out())
    assert pauses[-1] == OUTAGE_PAUSE_S
    assert pauses == sorted(pauses) or len(stored) > 1
    assert len(pauses) < 60
    assert 1800 <= lasted_s < 2000


def test_what_grows_is_tried_for_ever_longer_and_ends_when_all_is_stored() -> None:
    scene = Scene()
    for stored in range(1, 50):
        scene.now += 90
        assert scene.fail(stored) < 100
    scene.now += 101
    assert scene.fail(49) >= 100


def test_failures_count_until_something_is_stored() -> None:
    scene = Scene()
    assert scene.job.outage.count == 0
    for stored in (0, 0, 7, 7):
        scene.fail(stored)
    assert scene.job.outage.count == 2
    scene.job.store_answered()
    assert scene.job.outage.count == 0


def test_when_time_is_short_pauses_are() -> None:
    scene = Scene()
    for _ in range(10):
        scene.fail(0)
    scene.now += 1
    scene.queue.resume_due(scene.now)
    assert scene.job.is_paused
    assert scene.sit_out(1.0) == 1.0


def test_one_that_is_taken_up_again_has_its_time_anew() -> None:
    scene = Scene()
    scene.fail(0)
    scene.now += 3600
    scene.queue.end("a", "FAILED", "it lasted too long")
    scene.queue.retry("a")
    assert not scene.job.is_paused
    assert scene.fail(0) == 0

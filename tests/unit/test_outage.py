"""What ends an outage, and what does not."""

from __future__ import annotations

import pytest

from async_ckpt.agent import outage
from async_ckpt.agent.outage import Outages
from async_ckpt.config import OUTAGE_PAUSE_S


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage, "time", clock)
    return clock


def fail_until_given_up(outages: Outages, clock: Clock, stored: list[int]) -> list[float]:
    """The pauses until it is given up; ``stored`` is how much is in the store at each failure, again and again."""
    pauses = []
    for number in range(10_000):
        if not outages.pause("a", stored[number % len(stored)]):
            return pauses
        begun = clock.now
        while "a" not in outages.rested():
            clock.now += 0.5
        pauses.append(clock.now - begun)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("stored", [[0], [8, 0], [5, 3, 8, 1]], ids=["nothing", "lost again", "some of it lost again"])
def test_only_what_is_newly_stored_ends_it_and_pauses_grow_until_then(clock: Clock, stored: list[int]) -> None:
    outages = Outages(1800)
    pauses = fail_until_given_up(outages, clock, stored)
    assert pauses[-1] == OUTAGE_PAUSE_S
    assert pauses == sorted(pauses) or len(stored) > 1
    assert len(pauses) < 60
    assert 1800 <= outages.lasted_s("a") < 2000


def test_what_grows_is_tried_for_ever_longer_and_ends_when_all_is_stored(clock: Clock) -> None:
    outages = Outages(100)
    for stored in range(1, 50):
        clock.now += 90
        assert outages.pause("a", stored)
    clock.now += 101
    assert not outages.pause("a", 49)


def test_failures_count_until_something_is_stored(clock: Clock) -> None:
    outages = Outages(1800)
    assert outages.failures("a") == 0
    for stored in (0, 0, 7, 7):
        outages.pause("a", stored)
    assert outages.failures("a") == 2
    outages.end("a")
    assert outages.failures("a") == 0


def test_when_time_is_short_pauses_are(clock: Clock) -> None:
    outages = Outages(1800)
    for _ in range(10):
        outages.pause("a", 0)
    clock.now += 1
    assert outages.rested() == []
    assert outages.rested(1.0) == ["a"]

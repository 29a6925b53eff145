"""The rate at which the store takes bytes."""

from __future__ import annotations

from async_ckpt.agent.throughput import Throughput
from harness.common.clock import StillClock


def test_the_rate_is_of_the_last_seconds() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    assert rate.bytes_per_s() == 0
    rate.add(1000)
    clock.now += 4
    rate.add(1000)
    assert rate.bytes_per_s() == 500
    clock.now += 2
    assert rate.bytes_per_s() == 500
    clock.now += 6
    assert rate.bytes_per_s() == 0


def test_what_is_taken_back_does_not_count() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    rate.add(1000)
    clock.now += 1
    rate.add(-1000)
    assert rate.bytes_per_s() == 0


def test_nobody_has_to_ask_for_the_past_to_be_forgotten() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    for _ in range(1000):
        clock.now += 1
        rate.add(1)
    assert len(rate._sent) < 10

"""The rate at which the store takes bytes."""

from __future__ import annotations

import pytest

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


def test_what_is_sent_at_a_pace_is_not_taken_for_all_that_the_store_takes() -> None:
    clock = StillClock()
    rate = Throughput(clock)

    def send(bytes_per_s: int) -> None:
        for _ in range(100):
            clock.now += 0.1
            rate.add(bytes_per_s // 10)

    send(1000)
    assert rate.known == pytest.approx(1000, rel=0.1)
    rate.set_paced(50)
    send(50)
    assert rate.known == pytest.approx(1000, rel=0.1)
    assert rate.bytes_per_s() == pytest.approx(50, rel=0.1)
    rate.set_paced(0)
    send(400)
    assert rate.known == pytest.approx(400, rel=0.1)


def test_a_pace_that_is_kept_shows_that_the_store_takes_at_least_that() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    rate.add(10)
    rate.set_paced(5000)
    for _ in range(100):
        clock.now += 0.1
        rate.add(500)
    assert rate.known == pytest.approx(5000, rel=0.1)


def test_the_first_bytes_after_a_pace_are_not_measured_together_with_the_last_ones_at_it() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    rate.set_paced(1)
    for _ in range(40):
        clock.now += 0.1
        rate.add(1)
    rate.set_paced(0)
    for _ in range(20):
        clock.now += 0.1
        rate.add(1000)
    assert rate.known == pytest.approx(10_000, rel=0.1)


def test_the_time_in_which_nothing_was_uploaded_does_not_count() -> None:
    clock = StillClock()
    rate = Throughput(clock)
    for _ in range(3):
        for _ in range(20):
            clock.now += 0.1
            rate.add(1000)
        assert rate.known == pytest.approx(10_000, rel=0.1)
        rate.rest()
        clock.now += 3
        rate.add(1000)
        assert rate.known == pytest.approx(10_000, rel=0.1)

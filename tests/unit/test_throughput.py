"""The rate at which the store takes bytes."""

from __future__ import annotations

import pytest

from async_ckpt.agent import throughput
from async_ckpt.agent.throughput import Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_of_the_last_seconds(clock: list[float]) -> None:
    rate = Throughput()
    assert rate.bytes_per_s() == 0
    rate.add(1000)
    clock[0] += 4
    rate.add(1000)
    assert rate.bytes_per_s() == 500
    clock[0] += 2
    assert rate.bytes_per_s() == 500
    clock[0] += 6
    assert rate.bytes_per_s() == 0


def test_what_is_taken_back_does_not_count(clock: list[float]) -> None:
    rate = Throughput()
    rate.add(1000)
    clock[0] += 1
    rate.add(-1000)
    assert rate.bytes_per_s() == 0


def test_nobody_has_to_ask_for_the_past_to_be_forgotten(clock: list[float]) -> None:
    rate = Throughput()
    for _ in range(1000):
        clock[0] += 1
        rate.add(1)
    assert len(rate._sent) < 10

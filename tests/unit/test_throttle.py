"""A limit on bytes a second, which may be changed at any time."""

from __future__ import annotations

import time

import anyio
import pytest

from async_ckpt.config import PIECE_BYTES
from async_ckpt.stores.throttle import Throttle


class TestThrottle:
    def test_no_limit_waits_for_nothing(self) -> None:
        assert Throttle(0).reserve(1 << 40) == 0

    def test_waits_add_up_to_the_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        throttle = Throttle(1000)
        throttle.reserve(200)  # What may be made up for.
        assert [throttle.reserve(500) for _ in range(4)] == pytest.approx([0, 0.5, 1.0, 1.5])

    def test_a_moment_that_was_not_used_is_made_up_for_but_not_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        throttle = Throttle(1000)
        throttle.reserve(1000)
        now = 200.0
        assert throttle.reserve(1000) == pytest.approx(0)
        assert throttle.reserve(1000) == pytest.approx(0.8)

    @pytest.mark.parametrize("rate", [100, 1_000, 10_000, 300_000, 5_000_000, 10**9])
    def test_no_connection_is_silent_for_long_at_any_rate(self, rate: int) -> None:
        throttle = Throttle(rate)
        assert throttle.connections is not None
        assert throttle.connections >= 1
        assert 1024 <= throttle.piece_bytes <= PIECE_BYTES
        # Servers hang up after 20 seconds and more.
        assert throttle.connections * throttle.piece_bytes / rate <= max(2.0, 1024 / rate)

    def test_the_lower_of_limit_and_pace_counts(self) -> None:
        throttle = Throttle(1000)
        rates = []
        for pace in (500, 2000, 0):
            throttle.pace(pace)
            rates.append(throttle.rate)
        assert rates == [500, 1000, 1000]

    def test_a_pace_does_with_few_connections(self) -> None:
        found = []
        for pace in (100, 1_000_000, 20_000_000, 0):
            throttle = Throttle()
            throttle.pace(pace)
            found.append(throttle.connections)
        assert found == [1, 2, 6, None]

    def test_another_rate_holds_for_what_was_reserved_already(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        throttle = Throttle(1000)
        throttle.reserve(200)
        throttle.reserve(1000)
        throttle.pace(500)
        assert throttle.reserve(0) == pytest.approx(2.0)
        throttle.pace(0)
        now = 101.0
        assert throttle.reserve(0) == pytest.approx(0)  # Half a second at 1,000 would have done.

    def test_a_burst_is_not_saved_up_while_there_is_no_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        throttle = Throttle()
        now = 200.0
        throttle.pace(1000)
        throttle.reserve(200)
        assert throttle.reserve(1000) == pytest.approx(0)
        assert throttle.reserve(0) == pytest.approx(1.0)


def test_those_that_wait_are_let_go_at_once_when_the_pace_is_lifted() -> None:
    async def check() -> None:
        throttle = Throttle()
        throttle.pace(1)
        throttle.reserve(1_000_000)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(throttle.wait, 1_000_000)
                await anyio.wait_all_tasks_blocked()
                throttle.pace(0)
                throttle.pace(1)  # Also where the next pace comes before they had their turn.

    anyio.run(check)


def test_those_that_wait_go_by_a_new_pace() -> None:
    async def check() -> None:
        throttle, told = Throttle(), list[float]()
        throttle.pace(1)
        throttle.reserve(100_000)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(throttle.wait, 100_000, told.append)
                await anyio.wait_all_tasks_blocked()
                throttle.pace(10_000_000)
        assert told[0] > 50_000
        assert told[1] < 1

    anyio.run(check)


def test_who_is_cancelled_gives_its_turn_back() -> None:
    """Else those that come after would pay for bytes that are never sent."""

    async def check() -> None:
        throttle = Throttle(1000)
        throttle.reserve(100_000)
        before = throttle.reserve(0)
        with anyio.move_on_after(0.01):
            await throttle.wait(50_000)
        assert throttle.reserve(0) <= before

    anyio.run(check)

"""Limits: the number of requests that the network pays for."""

from __future__ import annotations

import anyio
from hypothesis import given
from hypothesis import strategies as st

from async_ckpt.stores.s3.limits import AdaptiveLimiter, HillClimber, Limiter


def climb(climber: HillClimber, rate_of: dict[str, float], windows: int) -> None:
    """Windows on a network where one connection gives ``each`` bytes a second and all together ``all``."""
    for _ in range(windows):
        climber.judge(min(climber.limit * rate_of["each"], rate_of["all"]), full=True)


def test_the_limit_rises_while_more_requests_bring_more() -> None:
    climber = HillClimber(8, 64)
    climb(climber, {"each": 50e6, "all": 10e9}, 20)
    assert climber.limit == 64


def test_the_limit_stays_where_more_requests_bring_nothing() -> None:
    climber = HillClimber(8, 64)
    climb(climber, {"each": 1e9, "all": 1e9}, 4)
    assert climber.limit == 8


def test_the_limit_settles_near_what_fills_the_network() -> None:
    climber = HillClimber(8, 64)
    climb(climber, {"each": 50e6, "all": 1e9}, 40)
    # 20 connections fill it; 18 and 27 are the steps on either side.
    assert climber.limit in (18, 27)


def test_a_limit_that_was_not_reached_says_nothing() -> None:
    climber = HillClimber(8, 64)
    for _ in range(20):
        climber.judge(1e9, full=False)
    assert climber.limit == 8


def test_a_store_that_asks_for_less_gets_half_once_for_all_that_was_under_way() -> None:
    climber = HillClimber(16, 64)
    for _ in range(16):
        climber.slow_down()
    assert climber.limit == 8
    climber.judge(1e9, full=True)
    climber.slow_down()
    assert climber.limit == 4


@given(st.lists(st.tuples(st.floats(0, 1e12), st.booleans(), st.booleans()), max_size=200), st.integers(1, 100))
def test_whatever_is_measured_the_limit_stays_within_its_bounds(
    windows: list[tuple[float, bool, bool]], most: int
) -> None:
    climber = HillClimber(8, most)
    for rate, full, slow in windows:
        if slow:
            climber.slow_down()
        climber.judge(rate, full=full)
        assert 1 <= climber.limit <= most


class TestLane:
    def test_no_more_than_the_limit_run_and_they_run_in_turn(self) -> None:
        async def check() -> None:
            limiter = Limiter(2)
            running, most, order = 0, 0, []

            async def request(number: int) -> None:
                nonlocal running, most
                async with limiter:
                    running += 1
                    most = max(most, running)
                    order.append(number)
                    await anyio.sleep(0)
                    running -= 1

            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(request, number)
            assert most == 2
            assert order == list(range(20))

        anyio.run(check)

    def test_a_turn_given_to_somebody_who_was_cancelled_is_not_lost(self) -> None:
        async def check() -> None:
            limiter = Limiter(1)
            entered = anyio.Event()

            async def wait(scope: anyio.CancelScope) -> None:
                with scope:
                    async with limiter:
                        entered.set()

            async with anyio.create_task_group() as group:
                scopes = [anyio.CancelScope() for _ in range(3)]
                async with limiter:
                    for scope in scopes:
                        group.start_soon(wait, scope)
                    await anyio.wait_all_tasks_blocked()
                    scopes[0].cancel()
                scopes[1].cancel()  # in the moment in which its turn came
                with anyio.fail_after(5):
                    await entered.wait()
            with anyio.fail_after(5):
                async with limiter:
                    pass

        anyio.run(check)

    def test_a_higher_limit_lets_the_waiting_in(self) -> None:
        async def check() -> None:
            now = 0.0
            limiter = AdaptiveLimiter(1, 8, clock=lambda: now)
            entered = 0

            async def request() -> None:
                nonlocal entered
                async with limiter:
                    entered += 1
                    await anyio.sleep_forever()

            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(request)
                await anyio.wait_all_tasks_blocked()
                assert entered == 1
                now = 1.5
                limiter.moved(1000)
                await anyio.wait_all_tasks_blocked()
                assert entered == 2
                group.cancel_scope.cancel()

        anyio.run(check)


def test_a_higher_limit_lets_those_in_that_wait() -> None:
    async def check() -> None:
        limiter, inside = Limiter(1), anyio.Semaphore(0)

        async def enter() -> None:
            async with limiter:
                inside.release()
                await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(enter)
            await inside.acquire()
            await anyio.wait_all_tasks_blocked()
            assert inside.value == 0
            limiter.change(3)
            with anyio.fail_after(5):
                await inside.acquire()
                await inside.acquire()
            group.cancel_scope.cancel()

    anyio.run(check)


def test_what_is_held_back_says_nothing_of_the_limit() -> None:
    """Else an upload at a low pace would leave a low limit to the one at full speed after it."""

    async def check(*, held_back: bool) -> int:
        now = 0.0
        limiter = AdaptiveLimiter(8, 64, lambda: now)
        async with anyio.create_task_group() as group:
            for _ in range(70):
                group.start_soon(limiter.__aenter__)
            await anyio.wait_all_tasks_blocked()
            for _ in range(20):
                now += 2.0
                limiter.moved(1_000_000, held_back=held_back)
            group.cancel_scope.cancel()
        return limiter._climber._next_hold

    assert anyio.run(lambda: check(held_back=True)) < anyio.run(lambda: check(held_back=False))

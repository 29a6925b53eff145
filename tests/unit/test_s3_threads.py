"""Calls in threads whose results come back in batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from async_ckpt.stores._s3_pace import Fixed
from async_ckpt.stores._s3_threads import Threads


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(check, 60))


class Started:
    """Threads that were started since this was made; others may end meanwhile."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def __len__(self) -> int:
        return len(set(threading.enumerate()) - self._before)

    def join(self) -> None:
        for thread in set(threading.enumerate()) - self._before:
            thread.join(60)
            assert not thread.is_alive()


def test_every_result_and_every_error_comes_back() -> None:
    def call(number: int) -> int:
        if number % 7 == 0:
            raise ValueError(number)
        return number

    async def check() -> None:
        threads = Threads(Fixed(8), 8)
        # Many times, since results that come while others are delivered must not be left lying.
        for _ in range(20):
            futures = [threads.run(lambda number=number: call(number)) for number in range(200)]
            found = await asyncio.gather(*futures, return_exceptions=True)
            assert [str(one) for one in found] == [str(number) for number in range(200)]
            assert all(isinstance(one, ValueError) == (number % 7 == 0) for number, one in enumerate(found))
        threads.close()

    run(check())


def test_there_are_as_many_threads_as_the_limit_says_and_as_are_needed() -> None:
    async def check() -> None:
        started = Started()
        limit = Fixed(2)
        threads, gate = Threads(limit, 2), threading.Event()
        assert len(started) == 0
        futures = [threads.run(lambda: gate.wait(60)) for _ in range(5)]
        assert len(started) == 2
        limit.limit = 4
        futures.append(threads.run(lambda: gate.wait(60)))
        assert len(started) == 3  # One with each call.
        gate.set()
        assert await asyncio.gather(*futures) == [True] * 6
        threads.close()
        started.join()

    run(check())


def test_a_closed_one_takes_no_calls_and_finishes_those_it_has() -> None:
    async def check() -> None:
        threads, gate = Threads(Fixed(1), 1), threading.Event()
        futures = [threads.run(lambda: gate.wait(60)), threads.run(lambda: True)]
        threads.close()
        with pytest.raises(RuntimeError, match="closed"):
            threads.run(lambda: None)
        gate.set()
        assert await asyncio.gather(*futures) == [True, True]

    run(check())


def test_nobody_waits_behind_calls_that_hang() -> None:
    async def check() -> None:
        threads, gate = Threads(Fixed(1), 3), threading.Event()
        hanging = [threads.run(lambda: gate.wait(60)) for _ in range(2)]
        assert await asyncio.gather(*(threads.run(lambda: 7) for _ in range(5))) == [7] * 5
        assert not any(future.done() for future in hanging)
        gate.set()
        assert await asyncio.gather(*hanging) == [True] * 2
        threads.close()

    run(check())


def test_a_cancelled_call_can_be_waited_for() -> None:
    async def check() -> None:
        threads, gate, over = Threads(Fixed(1), 1), threading.Event(), threading.Event()

        def call() -> None:
            gate.wait(60)
            over.set()

        async def use() -> None:
            future = threads.run(call)
            try:
                await future
            except asyncio.CancelledError:
                await threads.ended(future)
                assert over.is_set()
                raise

        task = asyncio.ensure_future(use())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # Impatience does not help.
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        future = threads.run(lambda: None)
        await future
        await threads.ended(future)  # At once.
        threads.close()

    run(check())


def test_a_loop_that_has_ended_is_no_error_in_the_thread(recwarn: pytest.WarningsRecorder) -> None:
    started, gate = Started(), threading.Event()

    async def check() -> None:
        threads = Threads(Fixed(1), 1)
        threads.run(lambda: gate.wait(60))
        threads.close()

    run(check())
    gate.set()
    started.join()
    assert not recwarn.list

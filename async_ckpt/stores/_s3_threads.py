"""Threads for requests, cheap enough for thousands of small ones.

``concurrent.futures`` and asyncio take about as long to hand a call to a thread and its result back as a small request
takes. Here results come back in batches: one wake-up of the loop brings all that are ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from ._s3_pace import Limit

T = TypeVar("T")

_Call = tuple[Callable[[], Any], "asyncio.Future[Any]"]


#: After so many seconds in which no call has ended, those that wait get one thread more.
_PATIENCE_S = 0.2


class Threads:
    """Runs calls in threads that are started as they are needed; for one event loop, the running one.

    They are daemons: a connection on which nothing moves keeps no process from ending.

    Parameters
    ----------
    policy : Limit
        How many threads there may be; looked at with every call.
    most : int
        How many there may be where those that are there hang: nobody waits behind a connection on which nothing moves.
    """

    def __init__(self, policy: Limit, most: int) -> None:
        self._policy, self._most = policy, most
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._started = self._ended = 0
        self._watching: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Future[Any]] = set()
        self._ends: dict[asyncio.Future[Any], asyncio.Future[None]] = {}
        self._waking = self._closed = False

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call a function in a thread. Whoever cancels its future waits for ``ended``."""
        if self._closed:
            raise RuntimeError("the threads are closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._running.add(future)
        self._calls.put((function, future))
        if self._started < min(len(self._running), self._policy.limit):
            self._start()
        self._watch()
        return future

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._work, name="async_ckpt-s3", daemon=True).start()

    def _watch(self) -> None:
        """See to it that calls that wait for a thread do not wait for long."""
        if self._watching is None and self._started < min(len(self._running), self._most):
            self._watching = self._loop.call_later(_PATIENCE_S, self._relieve, self._ended)

    def _relieve(self, ended: int) -> None:
        self._watching = None
        if not self._closed:
            if ended == self._ended and self._started < min(len(self._running), self._most):
                self._start()
            self._watch()

    async def ended(self, future: asyncio.Future[Any]) -> None:
        """Wait until the call has ended, also one whose future was cancelled. For tasks that were cancelled: another
        cancellation changes nothing.
        """
        if future in self._running:
            ended = self._ends[future] = self._loop.create_future()
            with anyio.CancelScope(shield=True):
                while not ended.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait({ended})

    def close(self) -> None:
        """End the threads, each when its call has ended."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            self._done.append((future, result, error))
            # Appended before it is asked, and cleared before they are taken: no result is left lying.
            if not self._waking:
                self._waking = True
                with contextlib.suppress(RuntimeError):  # A loop that has ended waits for nothing.
                    self._loop.call_soon_threadsafe(self._deliver)
            del call, function, future, result, error

    def _deliver(self) -> None:
        self._waking = False
        while self._done:
            future, result, error = self._done.popleft()
            self._running.discard(future)
            self._ended += 1
            if (ended := self._ends.pop(future, None)) is not None:
                ended.set_result(None)
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

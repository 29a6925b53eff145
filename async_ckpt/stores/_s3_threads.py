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

from ._s3_pace import Limit

T = TypeVar("T")

_Call = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """Runs calls in threads that are started as they are needed; for one event loop, the running one.

    They are daemons: a connection on which nothing moves keeps no process from ending.

    Parameters
    ----------
    policy : Limit
        How many threads there may be; looked at with every call.
    """

    def __init__(self, policy: Limit) -> None:
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._started = 0
        self._busy = 0
        self._waking = self._closed = False

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call a function in a thread. Its future must not be cancelled before it is done; shield it."""
        if self._closed:
            raise RuntimeError("the threads are closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._busy += 1
        self._calls.put((function, future))
        if self._started < min(self._busy, self._policy.limit):
            self._started += 1
            threading.Thread(target=self._work, name="async_ckpt-s3", daemon=True).start()
        return future

    def close(self) -> None:
        """End the threads, each when its call has ended."""
        self._closed = True
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
            self._busy -= 1
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

"""Limits on requests in flight; one of them adapts itself."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from ...config import CLIMB_WINDOW_S

#: A higher limit is kept if it brought so much more.
_GAIN = 1.08
#: How many windows pass after a limit that brought nothing before the next is tried: at first, and at most, as there
#: are more each time.
_HOLD, _MAX_HOLD = 4, 64
#: The same after a store that asked us to slow down.
_HOLD_SLOW = 30


class HillClimber:
    """Finds the number of requests in flight beyond which more bring nothing, by hill climbing; it only decides.

    One request fills what a connection gives, which differs by a factor of a hundred between a loopback and a store
    far away. So the limit is raised by half for a window; if throughput did not follow, it is taken back.

    Parameters
    ----------
    start, most : int
        The first limit, and the highest.
    """

    def __init__(self, start: int, most: int) -> None:
        self.limit, self._most = min(start, most), most
        self._rate = 0.0
        self._before = 0  # the limit to go back to; 0: nothing is being tried
        self._hold, self._next_hold = 1, _HOLD

    def judge(self, rate: float, *, full: bool) -> None:
        """A window ended: bytes a second in it, and whether more requests were waiting all the time."""
        if self._hold == _HOLD_SLOW:
            self._hold -= 1
            return
        if not full:
            # Nothing is known of a limit that was not reached.
            if self._before:
                self.limit, self._before = self._before, 0
            return
        if self._before:
            if rate < self._rate * _GAIN:
                self.limit, self._before = self._before, 0
                self._hold, self._next_hold = self._next_hold, min(2 * self._next_hold, _MAX_HOLD)
                return
            self._before, self._next_hold, self._hold = 0, _HOLD, 0
        self._rate = rate
        self._hold -= 1
        if self._hold <= 0 and self.limit < self._most:
            self._before = self.limit
            self.limit = min(math.ceil(self.limit * 1.5), self._most)

    def slow_down(self) -> None:
        """The store asked for less; once for all requests that were under way then."""
        if self._hold == _HOLD_SLOW:
            return
        self.limit = max((self._before or self.limit) // 2, 1)
        self._before, self._hold = 0, _HOLD_SLOW


class Limiter:
    """A limit on requests in flight; first come, first served. Use ``async with limiter:`` around a request.

    Parameters
    ----------
    limit : int
        How many at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = 0

    async def __aenter__(self) -> None:
        if self._running < self.limit and not self._waiting:
            self._running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise  # A turn that was cancelled is passed over when it comes.

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def change(self, limit: int) -> None:
        """So many at a time from now on. Those that run already go on."""
        self.limit = limit
        self._wake()

    def _release(self) -> None:
        self._running -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)


class AdaptiveLimiter(Limiter):
    """A limiter that learns its limit from what is transferred.

    Parameters
    ----------
    start, most : int
        The first limit, and the highest.
    """

    def __init__(self, start: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._climber, self._clock = HillClimber(start, most), clock
        super().__init__(self._climber.limit)
        self._began, self._bytes, self._full = clock(), 0, True

    def moved(self, count: int, *, held_back: bool = False) -> None:
        """Bytes that were transferred; takes back what a failed try had reported. ``held_back``: it was not the limit
        that kept more from being transferred.
        """
        self._bytes += count
        now = self._clock()
        self._full = self._full and bool(self._waiting) and not held_back
        if now - self._began >= CLIMB_WINDOW_S:
            self._climber.judge(self._bytes / (now - self._began), full=self._full)
            self._began, self._bytes, self._full = now, 0, True
            self.change(self._climber.limit)

    def slow_down(self) -> None:
        """The store asked for less."""
        self._climber.slow_down()
        self.limit = self._climber.limit

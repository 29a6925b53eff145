"""How much at a time: a limit on requests that finds its own height, and a limit on bytes a second."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from ...config import PIECE_BYTES

#: How long a limit is watched before it is judged, in seconds.
_WINDOW_S = 1.0
#: A higher limit is kept if it brought so much more.
_GAIN = 1.08
#: After a limit that brought nothing, so many windows pass before the next is tried; more each time.
_HOLD, _MAX_HOLD = 4, 64
#: The same after a store that asked us to slow down.
_HOLD_SLOW = 30

#: A throttled connection gets a piece about so often, in seconds: servers hang up on those that are silent for long.
_PIECE_S = 0.25
#: And no smaller one, in bytes.
_LEAST_PIECE_BYTES = 1 << 10
#: And waits for its turn for no longer than so many seconds.
_TURN_S = 2.0

#: What was not sent may be made up for, if it is no longer ago: nobody sends all the time.
_BURST_S = 0.2


class Limit(Protocol):
    """How many at a time; it may change its mind."""

    limit: int


class Fixed:
    """A ``Limit`` that stays what it is."""

    def __init__(self, limit: int) -> None:
        self.limit = limit


class Climber:
    """Finds the number of requests in flight beyond which more bring nothing; decides, and knows no clock.

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


class Lane:
    """A limit on requests in flight; first come, first served. Use ``async with lane:`` around a request, in one loop.

    Parameters
    ----------
    policy : Limit
        Says how many.
    """

    def __init__(self, policy: Limit) -> None:
        self._policy = policy
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = 0

    @property
    def limit(self) -> int:
        return self._policy.limit

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

    def _release(self) -> None:
        self._running -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)


class ClimbingLane(Lane):
    """A lane that tells a ``Climber`` what it moves."""

    def __init__(self, climber: Climber, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(climber)
        self._climber, self._clock = climber, clock
        self._began, self._bytes, self._full = clock(), 0, True

    def moved(self, count: int) -> None:
        """Bytes that were transferred; takes back what a failed try had reported."""
        self._bytes += count
        now = self._clock()
        self._full = self._full and bool(self._waiting)
        if now - self._began >= _WINDOW_S:
            self._climber.judge(self._bytes / (now - self._began), full=self._full)
            self._began, self._bytes, self._full = now, 0, True
            self._wake()

    def slow_down(self) -> None:
        self._climber.slow_down()


class Throttle:
    """At most so many bytes a second, over all requests of one loop; 0: as many as there are.

    What a moment leaves over (``_BURST_S``) is made up for: otherwise each pause, for a digest or an answer, is lost.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    def reserve(self, count: int) -> float:
        """Seconds to wait before ``count`` bytes may be sent."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        due = max(self._free_at, now - _BURST_S)
        self._free_at = due + count / self._rate
        return max(due - now, 0.0)

    async def wait(self, count: int, told: Callable[[float], None] = lambda pause_s: None) -> None:
        """Wait until ``count`` bytes may be sent; ``told`` hears for how many seconds. Who is cancelled gives its turn
        back: those that come after would pay for bytes that are never sent.
        """
        if not (pause_s := self.reserve(count)):
            return
        told(pause_s)
        try:
            await anyio.sleep(pause_s)
        except BaseException:
            self._free_at -= count / self._rate
            raise

    @property
    def piece_bytes(self) -> int:
        """How much to send at a time on one connection: less where the rate is low, so that it is never silent."""
        if not self._rate:
            return PIECE_BYTES
        return int(min(max(self._rate * _PIECE_S, _LEAST_PIECE_BYTES), PIECE_BYTES))

    @property
    def connections(self) -> int | None:
        """How many requests may share the rate, so that each has a piece every few seconds; None: any number."""
        return max(1, int(_TURN_S * self._rate / self.piece_bytes)) if self._rate else None

"""A limit on the bytes that are sent a second, which may be changed while others wait for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio

from ..config import PACE_CONNECTION_BYTES_S, PIECE_BYTES, THROTTLE_BURST_S, THROTTLE_PIECE_S, THROTTLE_TURN_S

#: A throttled connection gets no smaller piece than this, in bytes.
_LEAST_PIECE_BYTES = 1 << 10


def _ignore(pause_s: float) -> None:
    """Of somebody who does not want to know how long it waits."""


class Throttle:
    """At most so many bytes a second, over all that one loop sends; 0: as many as there are.

    What a moment leaves over (``THROTTLE_BURST_S``) is made up for: else each pause for a digest or an answer is lost.

    Parameters
    ----------
    limit : float
        Bytes a second that are never exceeded. ``pace`` may only ask for less.
    """

    def __init__(self, limit: float = 0.0) -> None:
        self._limit = self._rate = limit
        self._pace = 0.0
        # All is counted in bytes and not in seconds, so that a new rate also holds for those that wait already: how
        # many may have been sent by the moment ``_at``, and how many are spoken for.
        self._at, self._allowed, self._reserved = time.monotonic(), 0.0, -math.inf
        self._changed: anyio.Event | None = None

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than this from now on, or than the limit, if that is lower; 0: only the limit counts. Those
        that wait go by it at once. Call it in the loop that sends.
        """
        self._catch_up()
        self._pace = bytes_per_s
        self._rate = min((rate for rate in (bytes_per_s, self._limit) if rate), default=0.0)
        if not self._rate:
            self._allowed = max(self._allowed, self._reserved)  # Nobody waits any more.
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def rate(self) -> float:
        """Bytes a second now; 0: there is no limit."""
        return self._rate

    def _catch_up(self) -> float:
        """How many bytes may have been sent by now."""
        now = time.monotonic()
        self._allowed += (now - self._at) * self._rate
        self._at = now
        return self._allowed

    def _reserve(self, count: int) -> float:
        """Take a turn: it comes when so many bytes may have been sent as this returns."""
        turn = max(self._reserved, self._catch_up() - THROTTLE_BURST_S * self._rate)
        self._reserved = turn + count
        return turn

    def reserve(self, count: int) -> float:
        """Seconds to wait, at the rate that there is now, before ``count`` bytes may be sent."""
        if not self._rate:
            return 0.0
        return max(self._reserve(count) - self._allowed, 0.0) / self._rate

    async def wait(self, count: int, told: Callable[[float], None] = _ignore) -> None:
        """Wait until ``count`` bytes may be sent; ``told`` hears for how many seconds, and again where the rate has
        changed. Who is cancelled gives its turn back: those that come after would pay for bytes that are never sent.
        """
        if not self._rate:
            return
        turn = self._reserve(count)
        try:
            while self._rate and (pause_s := (turn - self._catch_up()) / self._rate) > 0:
                told(pause_s)
                if self._changed is None:
                    self._changed = anyio.Event()
                with anyio.move_on_after(pause_s):
                    await self._changed.wait()
        except BaseException:
            self._reserved -= count
            raise

    @property
    def piece_bytes(self) -> int:
        """How much to send at a time on one connection: less where the rate is low, so that it is never silent."""
        if not self._rate:
            return PIECE_BYTES
        return int(min(max(self._rate * THROTTLE_PIECE_S, _LEAST_PIECE_BYTES), PIECE_BYTES))

    @property
    def connections(self) -> int | None:
        """How many requests may share the rate, so that each has a piece every few seconds, and at a pace no more than
        it takes; None: any number.
        """
        if not self._rate:
            return None
        needed = 1 + math.ceil(self._pace / PACE_CONNECTION_BYTES_S) if self._pace else math.inf
        return int(max(1, min(THROTTLE_TURN_S * self._rate / self.piece_bytes, needed)))

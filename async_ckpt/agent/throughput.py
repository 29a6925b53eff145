"""How fast the store takes what is sent."""

from __future__ import annotations

from collections import deque

from ..config import RATE_KNOWN_S, RATE_LEAST_S, RATE_WINDOW_S
from ..system.clock import Clock


class Throughput:
    """Bytes sent, over the last seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent: deque[tuple[float, int]] = deque()
        self._total = 0
        self._last = 0.0
        self._is_sure = False
        self._paced = 0
        self._is_resting = False

    def set_paced(self, bytes_per_s: int) -> None:
        """How fast may be sent; 0: as fast as can be. What is sent at a pace does not tell how fast the store is."""
        if bool(bytes_per_s) != bool(self._paced):
            self._begin_anew()
        self._paced = bytes_per_s

    def rest(self) -> None:
        """Nothing is being uploaded: what is sent next is not measured together with what was sent before."""
        self._is_resting = True

    def _begin_anew(self) -> None:
        self._sent.clear()
        self._total, self._is_resting = 0, False

    def add(self, count: int) -> None:
        """So many bytes were sent; a negative number takes some back."""
        if self._is_resting:
            self._begin_anew()
        now = self._forget()
        self._sent.append((now, count))
        self._total += count
        first_at, first = self._sent[0]
        if self._paced:
            if now - first_at >= RATE_KNOWN_S:
                self._last = max(self._last, self.bytes_per_s())  # It takes that much at least.
        elif now - first_at >= RATE_KNOWN_S:
            self._last, self._is_sure = self.bytes_per_s(), True
        elif not self._is_sure:
            # A first guess, without what was sent before it was measured: that came from nowhere at once.
            span = now - first_at
            self._last = (self._total - first) / span if span >= RATE_LEAST_S else self.bytes_per_s()

    @property
    def known(self) -> float:
        """Bytes a second when something was sent last as fast as could be; 0: nothing ever was."""
        return self._last

    def assume(self, bytes_per_s: float) -> None:
        """Forget what was measured, and go by this until there is more."""
        self._begin_anew()
        self._last, self._is_sure = bytes_per_s, True

    def bytes_per_s(self) -> float:
        now = self._forget()
        if not self._sent:
            return 0.0
        return max(self._total, 0) / max(now - self._sent[0][0], RATE_LEAST_S)

    def _forget(self) -> float:
        """Let go of what is past; returns the time."""
        now = self._clock.monotonic()
        while self._sent and now - self._sent[0][0] > RATE_WINDOW_S:
            self._total -= self._sent.popleft()[1]
        return now

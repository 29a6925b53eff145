"""How fast this disk copies files, and so how much can be copied away while the kernel holds up a writer."""

from __future__ import annotations

import threading

#: What a disk is taken for before it was seen at work, in bytes per second: a slow one.
_ASSUMED = 100e6

#: Copies that are smaller (bytes) and quicker (seconds) say nothing: they go no further than memory.
_MIN_BYTES, _MIN_S = 256 << 20, 1.0

#: A disk that was seen to copy so much at its pace is trusted with so many times as much.
_TRUST = 4

#: Share of the newest copy in the rate.
_NEWEST = 0.5


class Pace:
    """What was seen of the disk; any thread may ask and tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rate = 0.0
        self._largest = 0

    def add(self, count: int, seconds: float) -> None:
        """So many bytes were copied in that time."""
        if seconds <= 0 or (count < _MIN_BYTES and seconds < _MIN_S):
            return
        with self._lock:
            rate = count / seconds
            self._rate = _NEWEST * rate + (1 - _NEWEST) * self._rate if self._rate else rate
            self._largest = max(self._largest, count)

    @property
    def bytes_per_s(self) -> float:
        """As seen lately; 0: not yet."""
        return self._rate

    def possible(self, seconds: float) -> int:
        """How many bytes can surely be copied in so many seconds, as far as is known."""
        with self._lock:
            if not self._rate:
                return int(_ASSUMED * seconds)
            seen = max(_TRUST * self._largest, int(min(self._rate, _ASSUMED) * seconds))
            return min(int(self._rate * seconds), seen)

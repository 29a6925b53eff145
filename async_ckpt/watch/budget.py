"""How much of a core looking may take."""

from __future__ import annotations

import time

#: At most this share, within so many seconds,
_SHARE, _WITHIN_S = 0.05, 5.0
#: and not more often than every so many seconds.
SHORTEST_S = 0.02


class Budget:
    """What looking costs, and how long it must rest for it."""

    def __init__(self) -> None:
        #: Seconds of a core that are left (below 0: it must rest), and when that was so.
        self._left, self._at = _SHARE * _WITHIN_S, time.monotonic()

    def spend(self, cost_s: float) -> None:
        """Looking took so many seconds of a core."""
        now, most = time.monotonic(), _SHARE * _WITHIN_S
        self._left = max(min(self._left + _SHARE * (now - self._at), most) - cost_s, -most)
        self._at = now

    def rest_s(self) -> float:
        """How long not to look now, in seconds."""
        return max(-self._left / _SHARE - (time.monotonic() - self._at), SHORTEST_S)

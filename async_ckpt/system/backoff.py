"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random


class Backoff:
    """Pauses: none at first, then one that is twice as long each time, up to a limit.

    Parameters
    ----------
    free : int
        So many failures cost nothing.
    first_s, most_s : float
        The first pause, and the longest one, in seconds.
    calm_s : float
        After so many seconds without a failure the earlier ones are forgotten.
    jitter : bool
        Each pause is a random part of that, so that those who failed together do not come back together.
    """

    def __init__(
        self, free: int, first_s: float, most_s: float, calm_s: float = float("inf"), *,
        jitter: bool = False,
    ) -> None:  # fmt: skip
        self._free, self._first_s, self._most_s, self._calm_s = free, first_s, most_s, calm_s
        self._jitter = jitter
        #: Failures in a row.
        self.count = 0
        self._last = self._pause = 0.0

    def failed(self, now: float) -> float:
        """It failed once more (monotonic seconds); returns the pause."""
        if now - self._last > self._calm_s:
            self.count = 0
        self.count += 1
        self._last = now
        earlier = self.count - self._free - 1
        self._pause = min(self._first_s * 2 ** min(earlier, 30), self._most_s) if earlier >= 0 else 0.0
        if self._jitter:
            self._pause *= random.random()
        return self._pause

    def left_s(self, now: float, most_s: float = float("inf")) -> float:
        """For how many seconds it is not to be tried yet; a pause of more than ``most_s`` counts as one of so many."""
        return max(self._last + min(self._pause, most_s) - now, 0.0)

    def reset(self) -> None:
        """It went well: earlier failures do not count any more."""
        self.count, self._pause = 0, 0.0

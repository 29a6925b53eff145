"""Stores out of reach, as each checkpoint sees them: how long to wait before the next try, and when to give up."""

from __future__ import annotations

import time
from dataclasses import dataclass

_MAX_PAUSE_S = 60.0


@dataclass
class _Pause:
    """Since when, and until when it waits now (monotonic seconds)."""

    since: float
    length_s: float = 1.0
    until: float = 0.0


class Outages:
    """Pauses by checkpoint.

    Parameters
    ----------
    limit_s : float
        How long an outage may last.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._pauses: dict[str, _Pause] = {}

    def pause(self, identity: str) -> bool:
        """A try failed: wait, longer each time. False once the outage has lasted too long."""
        now = time.monotonic()
        pause = self._pauses.setdefault(identity, _Pause(since=now))
        if now - pause.since >= self._limit_s:
            return False
        pause.length_s = min(2 * pause.length_s, _MAX_PAUSE_S)
        pause.until = now + pause.length_s
        return True

    def end(self, identity: str) -> None:
        """The store is back, or nobody asks it any more."""
        self._pauses.pop(identity, None)

    def rested(self) -> list[str]:
        """Whose pause is over."""
        now = time.monotonic()
        return [identity for identity, pause in self._pauses.items() if now >= pause.until]

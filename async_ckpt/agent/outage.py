"""Stores out of reach, as each checkpoint sees them: how long to wait before the next try, and when to give up.

Only what is in the store for good, and was not before, ends an outage: bytes that were moved in vain, parts that are
found again, and those that are stored anew after an upload was lost do not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..config import OUTAGE_PAUSE_S


@dataclass
class _Outage:
    """Since when, the most that was in the store, and from when until when it waits now (monotonic seconds)."""

    since: float
    stored: int
    failures: int = 0
    length_s: float = 1.0
    paused: float = 0.0


class Outages:
    """Pauses by checkpoint.

    Parameters
    ----------
    limit_s : float
        How long an outage may last.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._outages: dict[str, _Outage] = {}

    def pause(self, identity: str, stored: int) -> bool:
        """A try failed: wait, longer each time. False once the outage has lasted too long.

        Parameters
        ----------
        stored : int
            How many bytes of the checkpoint are in the store for good.
        """
        now = time.monotonic()
        outage = self._outages.get(identity)
        if outage is None or stored > outage.stored:
            outage = self._outages[identity] = _Outage(now, stored)
        if now - outage.since >= self._limit_s:
            return False
        outage.failures += 1
        outage.length_s = min(2 * outage.length_s, OUTAGE_PAUSE_S)
        outage.paused = now
        return True

    def lasted_s(self, identity: str) -> float:
        """For how long a checkpoint has been tried in vain, in seconds."""
        outage = self._outages.get(identity)
        return time.monotonic() - outage.since if outage is not None else 0.0

    def end(self, identity: str) -> None:
        """The store is back, or nobody asks it any more."""
        self._outages.pop(identity, None)

    def failures(self, identity: str) -> int:
        """How often a checkpoint was tried in vain."""
        outage = self._outages.get(identity)
        return outage.failures if outage is not None else 0

    def rested(self, most_s: float = OUTAGE_PAUSE_S) -> list[str]:
        """Whose pause is over; one of more than ``most_s`` seconds counts as one of so many."""
        now = time.monotonic()
        return [
            identity
            for identity, outage in self._outages.items()
            if now >= outage.paused + min(outage.length_s, most_s)
        ]

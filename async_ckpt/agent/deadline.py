"""When this machine will be taken away, and which checkpoint can still make it.

The notice is a file that Metaflow writes on a spot instance (the time as ISO 8601, as the cloud said it), a SIGTERM, or
what the task tells.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence

from .queue import Job

#: How often the notice's file is looked for, in seconds.
_LOOK_S = 1.0

#: Of the time left, so much is planned with: rates vary, and a commit takes its round trips.
_SHARE = 0.8


class Notice:
    """The notice's file.

    Parameters
    ----------
    path : str
        Where it will be; empty: nowhere.
    grace_s : float
        Seconds left where it does not say when.
    """

    def __init__(self, path: str, grace_s: float) -> None:
        self._path, self._grace_s = path, grace_s
        self._next = 0.0

    def seconds_left(self) -> float | None:
        """Seconds until the machine goes, told once; None: nothing is known of that (or it was told)."""
        now = time.monotonic()
        if not self._path or now < self._next:
            return None
        self._next = now + _LOOK_S
        try:
            with open(self._path, errors="replace") as file:
                text = file.read(256)
        except OSError:
            return None
        left = _until(text.strip(), self._grace_s)
        if left <= 0:
            return None  # Another task's, or of a machine that was not taken after all.
        self._path = ""
        return left


def _until(text: str, unknown: float) -> float:
    try:
        when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return unknown
    when = when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)
    return when.timestamp() - time.time()


def choose(newest_first: Sequence[Job], bytes_per_s: float, seconds: float) -> Job | None:
    """What to upload alone: the newest that is expected to be in the store in time; where none is, what is quickest.

    Parameters
    ----------
    bytes_per_s : float
        What the store takes; 0: unknown, and then the newest it is.
    seconds : float
        Until the end.
    """
    budget = bytes_per_s * seconds * _SHARE
    for job in newest_first:
        if not bytes_per_s or job.left <= budget:
            return job
    return min(newest_first, key=lambda job: job.left, default=None)

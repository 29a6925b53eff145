"""The notice of the machine's end: a file that Metaflow writes on a spot instance (the time as ISO 8601, as the cloud
said it).
"""

from __future__ import annotations

import datetime
import os
import stat
import time

from ..config import NOTICE_LOOK_S

#: Of more text nobody reads the rest.
_MAX_BYTES = 256


class Notice:
    """The notice's file, which may be anybody's: of another day, of another machine, nonsense.

    Parameters
    ----------
    path : str
        Where it will be; empty: nowhere.
    grace_s : float
        Seconds left, from when it was written, where it does not say when.
    """

    def __init__(self, path: str, grace_s: float) -> None:
        self._path, self._grace_s = path, grace_s
        self._next = 0.0
        self._said: tuple[str, int] | None = None
        #: Whether the last one that was told is not there any more, or is over.
        self.is_withdrawn = False

    def seconds_left(self) -> float | None:
        """Seconds until the machine goes, told once for each notice; None: there is nothing new."""
        now = time.monotonic()
        if not self._path or now < self._next:
            return None
        self._next = now + NOTICE_LOOK_S
        said = self._read()
        if said == self._said:
            return None
        self._said, self.is_withdrawn = said, True
        left = self._until(*said) if said is not None else 0.0
        if left <= 0:
            return None  # It was taken away; or it is another task's, or of a machine that was not taken after all.
        self.is_withdrawn = False
        return left

    def _read(self) -> tuple[str, int] | None:
        """What it says, and when it was written (nanoseconds)."""
        try:
            # In a folder where everybody may write: a pipe would never open, and a device never end.
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(fd)
            text = os.read(fd, _MAX_BYTES).decode(errors="replace") if stat.S_ISREG(status.st_mode) else None
        except OSError:
            return None
        finally:
            os.close(fd)
        return (text.strip(), status.st_mtime_ns) if text is not None else None

    def _until(self, text: str, written_ns: int) -> float:
        try:
            when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
            when = when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)
            return when.timestamp() - time.time()
        except (ValueError, OverflowError):
            return min(self._grace_s - (time.time() - written_ns / 1e9), self._grace_s)

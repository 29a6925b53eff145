"""The notice of the machine's end: a file that Metaflow writes on a spot instance, with the time as the cloud said it.

Others may write it as well, again and again, and in other words. The first time in it counts: as ISO 8601 (AWS, alone
or in its JSON) or as in e-mails (Azure); one without a zone is in UTC. If there is no time in it (Google only says
``TRUE``), the usual time is counted from when the file was written.
"""

from __future__ import annotations

import datetime
import os
import re
import stat

from ..config import NOTICE_LOOK_S
from ..system.clock import Clock

#: Of more text nobody reads the rest.
_MAX_BYTES = 4096

_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,]\d+)?\s?(?:([+-]\d\d):?(\d\d))?")
_E_MAIL = re.compile(r"\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


class SpotNotice:
    """The notice's file, which may be anybody's: of another day, of another machine, nonsense.

    Parameters
    ----------
    path : str
        Where it will be; empty: nowhere.
    grace_s : float
        Seconds left, from when it was written, where it does not say when.
    """

    def __init__(self, path: str, grace_s: float, clock: Clock) -> None:
        self._path, self._grace_s, self._clock = path, grace_s, clock
        self._next = 0.0
        #: What was told last: the time, or the words where there was none; and when the end is (seconds since 1970).
        self._said: float | str | None = None
        self._until = 0.0
        #: Whether the last one that was told is not there any more, or is over.
        self.is_withdrawn = False

    def seconds_left(self) -> float | None:
        """Seconds until the machine goes, told once for each notice; None: there is nothing new."""
        if not self._path or self._clock.monotonic() < self._next:
            return None
        self._next = self._clock.monotonic() + NOTICE_LOOK_S
        now, found = self._clock.time(), self._read()
        said: float | str | None = None
        until = 0.0
        if found is not None:
            text, written = found
            when = _moment(text)
            said, until = (when, when) if when is not None else (text, min(written, now) + self._grace_s)
        if said == self._said and (not isinstance(said, str) or now < self._until):
            return None  # However often it is written again.
        self._said, self._until, self.is_withdrawn = said, until, until <= now
        # One that is over is another task's, or of a machine that was not taken after all.
        return until - now if until > now else None

    def _read(self) -> tuple[str, float] | None:
        """What it says, and when it was written (seconds since 1970)."""
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
        return (text.strip(), status.st_mtime) if text is not None else None


def _moment(text: str) -> float | None:
    """The first time in a text, in seconds since 1970; None: there is none."""
    try:
        if found := _ISO.search(text):
            day, clock, hours, minutes = found.groups()
            return datetime.datetime.fromisoformat(f"{day}T{clock}{hours or '+00'}:{minutes or '00'}").timestamp()
        if found := _E_MAIL.search(text):
            from email.utils import parsedate_to_datetime  # Late: hardly any agent needs it.

            return parsedate_to_datetime(found[0]).timestamp()
    except (ValueError, OverflowError):
        pass  # It looks like a time, and is none.
    return None

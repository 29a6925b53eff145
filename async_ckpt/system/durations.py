"""Durations as people give them."""

from __future__ import annotations

import datetime
import math
import re
from typing import Any

#: What a unit's name begins with is how many seconds.
_UNITS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0,
    "d": 86400.0, "day": 86400.0,
}  # fmt: skip
#: What ``str`` makes of a ``timedelta``: options of Metaflow are handed on as text.
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*,?")

#: What may be given, for errors.
ALLOWED = "a number of seconds, a timedelta, or a text such as '90 s', '10 min' or '1 h 30 min'; more than nothing"


def seconds(value: Any) -> float:
    """How many seconds a duration is: a number of seconds, also of numpy and as text, a ``timedelta``, or a text such
    as ``"10 min"`` (s, min, h, d, and their names).

    Raises
    ------
    ValueError
        It is none, or not more than nothing, or has no end.
    """
    if isinstance(value, datetime.timedelta):
        found = value.total_seconds()
    else:
        text = str(value).strip().lower()  # Through text, numbers of numpy are read as Python's, and True is none.
        try:
            found = float(text)
        except ValueError:
            found = _of_text(text)
    if not 0 < found < math.inf:  # Also refuses nan.
        raise ValueError(value)
    return found


def _of_text(text: str) -> float:
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, rest = clock.groups(default="0")
        return 86400.0 * float(days) + 3600 * float(hours) + 60 * float(minutes) + float(rest)
    found, end = 0.0, 0
    while end < len(text):
        part = _PART.match(text, end)
        unit = part and (_UNITS.get(part[2]) or _UNITS.get(part[2].removesuffix("s")))
        if not part or not unit:
            raise ValueError(text)
        found, end = found + float(part[1]) * unit, part.end()
    return found

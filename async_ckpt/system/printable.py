"""JSON that other programs read: of the command line, and for clients of the socket.

Python writes NaN and Infinity into its JSON, and half characters (lone surrogates), which others refuse.
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

#: Levels of what is written; others' metadata may be deeper than readers of JSON can go.
_MAX_DEPTH = 200


def valid(value: Any, depth: int = 0) -> Any:
    """A copy of JSON values of Python in which all can be written as JSON: NaN and Infinity as strings of these names,
    half characters (lone surrogates) as ``\\udc80``, and a text for what is nested more than 200 deep.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if not isinstance(value, (dict, list, tuple)):
        return value
    if depth >= _MAX_DEPTH:
        return f"<nested more than {_MAX_DEPTH} deep>"
    if isinstance(value, dict):
        return {valid(key): valid(item, depth + 1) for key, item in value.items()}
    return [valid(item, depth + 1) for item in value]


def dumps(value: Any) -> str:
    """JSON as every client can read it; see ``valid``."""
    return json.dumps(valid(value), allow_nan=False)


def visible(text: str, most: int) -> str:
    """A text of others as a page may show it: what is no character to see, such as control characters and the marks
    that turn a line's direction, stands as ``\\u202e``, and what is longer than ``most`` characters is cut.
    """
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(
        f"\\u{ord(each):04x}" if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Co") and each != "\n" else each
        for each in cut
    )

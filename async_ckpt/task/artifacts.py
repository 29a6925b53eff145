"""Which checkpoints the artifacts of a task refer to."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any

#: So many items of artifacts are looked at, and so many characters of keys found, at most: they go to the agent in one
#: message.
_MOST_ITEMS, _MOST_TEXT = 100_000, 500_000
#: Types of what is no container and no key. A history of a million losses is looked through in some milliseconds so.
_NUMBERS = {int, float, complex, bool, type(None)}
#: How often a container is read anew that somebody else changes meanwhile.
_TRIES = 100


def checkpoints_in(artifacts: Mapping[str, Any]) -> set[str] | None:
    """The keys of checkpoints that stand in artifacts: by themselves, or as the ``key`` of a reference, also within
    lists, tuples, sets and dicts. None: there is too much in them to look through all of it.

    Parameters
    ----------
    artifacts : mapping
        Attributes of a flow, by name. Other threads may set some meanwhile.
    """
    found: set[str] = set()
    characters = 0
    left: deque[Any] = deque([artifacts])
    seen: set[int] = set()
    for _ in range(_MOST_ITEMS):
        if not left:
            return found
        value = left.popleft()
        if isinstance(value, (Mapping, list, tuple, set, frozenset)):
            if id(value) not in seen:
                seen.add(id(value))
                items = _items(value)
                if items is None:
                    return None
                left.extend(items)
            continue
        text = value if isinstance(value, str) else _key_of(value)
        if isinstance(text, str) and "/artifacts/" in text and text not in found:
            found.add(text)
            characters += len(ascii(text))
            if characters > _MOST_TEXT:
                return None
    return None


def _key_of(value: Any) -> Any:
    with contextlib.suppress(Exception):  # It may be anybody's object.
        return getattr(value, "key", None)
    return None


def _items(value: Any) -> list[Any] | None:
    """What a container has; nothing if that is numbers alone, or if it is a mapping of somebody else that cannot
    be read (a file that is closed, say). None: it is changed all the time.
    """
    for _ in range(_TRIES):
        try:
            found = list(value.values()) if isinstance(value, Mapping) else list(value)
        except RuntimeError:  # Its size has changed.
            continue
        except Exception:
            return []
        return [] if set(map(type, found)) <= _NUMBERS else found
    return None

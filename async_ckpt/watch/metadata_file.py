"""What a watch keeps of a JSON file that a trainer writes into each checkpoint, such as ``trainer_state.json``.

Such files grow with training: they carry the whole history of losses. A copy of that in the metadata of each checkpoint
would soon take more room than the weights. So only this is kept:

- single values at the top: numbers, booleans, null, and strings of at most 1000 characters;
- of each history at the top (a list of objects) the single values of its last entry, as an object;
- if the file as a whole is such a history, the single values of its last entry.

Nothing else is kept: no nested objects, no other lists. All of it together has ``metadata_from_bytes`` at most.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ..config import Config
from ..errors import UsageError
from ..metadata import MetadataNote

#: Characters of a string that is kept.
_MAX_TEXT = 1000
#: How many keys that are left out are named.
_NAMED = 10


def read(path: str, name: str, config: Config) -> tuple[dict[str, Any], list[MetadataNote]]:
    """What is kept of the file at ``path``, and a note that names what is not; ``name`` is what people call it.

    Raises
    ------
    OSError, ValueError, RecursionError
        It cannot be read, or is not JSON.
    UsageError
        It has more than ``metadata_file_bytes``.
    """
    limit = config.metadata_file_bytes
    # Without waiting for a writer, if it is a pipe.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UsageError(f"{name} has more than {limit} bytes", hint="Name a smaller file, or pass a function")
    kept, left_out = summarize(json.loads(content), config.metadata_from_bytes)
    if not left_out:
        return kept, []
    named = ", ".join(key[: _MAX_TEXT // 10] for key in left_out[:_NAMED])
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    line = (
        f"Of {name}, single values and the last entry of each history are kept as metadata; left out: {named}{more}. "
        "The checkpoint has the whole file"
    )
    return kept, [MetadataNote(f"\0{name}", line)]


def summarize(data: Any, max_bytes: int) -> tuple[dict[str, Any], list[str]]:
    """What is kept of a file's content, ``max_bytes`` of JSON at most, and the keys of what is left out."""
    if _is_history(data):
        kept, left_out = _last(data, "")
    elif isinstance(data, dict):
        kept, left_out = {}, []
        for key, value in data.items():
            if _is_single(value):
                kept[key] = value
            elif _is_history(value):
                kept[key], gone = _last(value, f"{key}.")
                left_out += gone
            else:
                left_out.append(key)
    else:
        return {}, ["everything, since it is no object"]
    for key in sorted(kept, key=lambda key: len(json.dumps({key: kept[key]}))):
        max_bytes -= len(json.dumps({key: kept[key]}))
        if max_bytes < 0:
            left_out.append(key)
            del kept[key]
    return kept, left_out


def _last(history: list[dict[str, Any]], prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Of the last entry of a history, what is kept, and the keys of what is not."""
    kept = {key: value for key, value in history[-1].items() if _is_single(value)}
    left_out = [f"{prefix[:-1] or 'all'} before its last entry"] if len(history) > 1 else []
    return kept, left_out + [f"{prefix}{key}" for key in history[-1] if key not in kept]


def _is_single(value: Any) -> bool:
    return (
        value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _MAX_TEXT)
    )


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)

"""A nested state as JSON values: what ``encoder.py`` writes and ``decoder.py`` reads.

Plain JSON stays as it is: None, booleans, whole numbers, finite floats, text, lists, and dicts whose keys are text.
Everything else is an object whose first key is a *mark*, which begins with ``$``: ``{"$tuple": [1, 2]}``. A dict that
has such a key itself is written as pairs. Tensors and arrays are *leaves*: hooks of the caller write and read them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import shorten

#: Containers within each other, at most. Python's own reader of JSON gives up not far above it.
MAX_DEPTH = 100
#: Characters of the path of a value that stand in an error.
_SHOWN = 200

#: The factories that a defaultdict may have.
FACTORIES: dict[str, Callable[[], Any]] = {
    "int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "set": set, "tuple": tuple,
}  # fmt: skip


def path_text(path: Iterable[Any]) -> str:
    """How a user writes the way to a value: ``state['model'][0]``."""
    return shorten("state" + "".join(f"[{key!r}]" for key in path), _SHOWN)


def find_class(name: str) -> Any:
    """The class ``module:qualified.name``, if its module is imported already: a file cannot say what to import."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # No code of the module runs.
    return found

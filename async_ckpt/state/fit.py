"""Whether a stored state fits the one into which it is to be read; found before anything is written."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .decoder import NOTHING, Comparison
from .tree import path_text

#: Differences that an error names.
_NAMED = 5


class Fit(Comparison):
    """Collects what does not fit. Where neither side has a tensor, everything fits: plain values are replaced."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def leaf(self, library: Any, place: Any, into: Any, path: list[Any]) -> None:
        """A stored tensor or array, and what is in its place."""
        if into is NOTHING or into is None:
            return
        why = (
            library.misfit(into, place.dtype, place.shape)
            if isinstance(into, library.TYPE)
            else f"is {_kind(into)} here"
        )
        if why:
            self._add(path, why)

    def missing(self, encoded: Any, parts: Mapping[Any, Any], path: list[Any]) -> None:
        """Beside tensors that are to be written to, none may be missing: it is another model then."""
        if _stored(encoded) and any(map(_is_tensor, parts.values())):
            self._add(path, "is missing here")

    def extra(self, part: Any, path: list[Any]) -> None:
        if _has_tensors(part):
            self._add(path, "is missing in the checkpoint")

    def other(self, encoded: Any, part: Any, path: list[Any]) -> None:
        if callable(getattr(part, "state_dict", None)):
            self._add(path, f"is {_kind(part)} here: give its state_dict()")
        elif _stored(encoded) or _has_tensors(part):
            self._add(path, f"has other parts in the checkpoint than {_kind(part)} here")

    def raise_if_not(self) -> None:
        """Raises
        ------
        UsageError
            Something does not fit.
        """
        if self._problems:
            more = len(self._problems) - _NAMED
            raise UsageError(
                f"The stored state does not fit 'into', and nothing was written: {'; '.join(self._problems[:_NAMED])}"
                + (f"; and {more} more" if more > 0 else ""),
                hint="Give the state of the same model. Where 'into' has None, what is stored is taken as it is",
            )

    def _add(self, path: list[Any], why: str) -> None:
        self._problems.append(f"{path_text(path)} {why}")


def _kind(into: Any) -> str:
    return f"a {type(into).__qualname__}"


def _stored(encoded: Any) -> bool:
    """Whether there is a tensor in a stored part."""
    if isinstance(encoded, list):
        return any(map(_stored, encoded))
    if not isinstance(encoded, dict):
        return False
    return "$tensor" in encoded or "$array" in encoded or any(map(_stored, encoded.values()))


def _has_tensors(part: Any, depth: int = 100) -> bool:
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, (list, tuple, deque)):
        return depth > 0 and any(_has_tensors(one, depth - 1) for one in part)
    return _is_tensor(part)


def _is_tensor(part: Any) -> bool:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(part, torch.Tensor)) or (
        numpy is not None and isinstance(part, numpy.ndarray)
    )

"""States whose content is told by their kind and number alone: any process can say whether one is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from async_ckpt.state.read import read_state

#: Kinds and how often each is saved, in shares. ``torch`` has the like as tensors.
KINDS = {"small": 30, "nested": 40, "large": 20}
TORCH = "torch"

_LARGE = 4 << 20


def make(kind: str, number: int) -> dict[str, Any]:
    """A state, new each time."""
    if kind == "small":
        return {"step": number, "rate": number / 7, "weights": _array(number, 100)}
    if kind == "large":
        return {"weights": _array(number, _LARGE), "moments": [_array(number + 1, _LARGE // 2)], "step": number}
    shared = _array(number, 3000)
    nested = {
        "model": {"a": shared, "tied": shared, "turned": _array(number, 40).reshape(5, 8).T, "none": _array(0, 0)},
        "optimizer": {
            "state": {0: {"step": number, "mean": _array(number + 2, 70_000)}},
            "groups": [{"betas": (0.9, 1)}],
        },
        "name/with a slash": f"n{number}",
        "nothing": None,
    }
    if kind == TORCH:
        import torch

        tensors = {name: torch.from_numpy(_array(number + at, 50_000)) for at, name in enumerate(("a", "b"))}
        return {**nested, "tensors": {**tensors, "tied": tensors["a"], "view": tensors["b"][10:20]}}
    assert kind == "nested", kind
    return nested


def _array(number: int, count: int) -> Any:
    return (np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(number)).view(np.float32)


def overwrite(state: Any) -> None:
    """Write over all numbers, in place."""
    if isinstance(state, Mapping):
        for value in state.values():
            overwrite(value)
    elif isinstance(state, list | tuple):
        for value in state:
            overwrite(value)
    elif hasattr(state, "data_ptr"):
        state.zero_()
    elif isinstance(state, np.ndarray):
        state[...] = 0


def fault_of(state: Any, kind: str, number: int) -> str:
    """What is wrong with what should be this state; empty: nothing."""
    return _difference(state, make(kind, number), "")


def _difference(found: Any, wanted: Any, where: str) -> str:
    if hasattr(wanted, "data_ptr"):
        found, wanted = (found.numpy() if hasattr(found, "data_ptr") else found), wanted.numpy()
    if isinstance(wanted, np.ndarray):
        is_same = isinstance(found, np.ndarray) and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        return "" if is_same and found.tobytes() == wanted.tobytes() else f"{where} is other"
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping) or found.keys() != wanted.keys():
            return f"{where} has other keys"
        return next(filter(None, (_difference(found[key], wanted[key], f"{where}/{key}") for key in wanted)), "")
    if isinstance(wanted, list | tuple):
        if type(found) is not type(wanted) or len(found) != len(wanted):
            return f"{where} is other"
        return next(filter(None, (_difference(*pair, f"{where}/…") for pair in zip(found, wanted, strict=True))), "")
    return "" if found == wanted and type(found) is type(wanted) else f"{where} is {found!r} instead of {wanted!r}"


def fault_in_store(root: Path, reference: Mapping[str, Any]) -> str:
    """What is wrong with a checkpoint whose metadata can be seen; ``root`` is the store's. Empty: nothing."""
    try:
        state = read_state(root / reference["key"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return fault_of(state, reference["metadata"]["kind"], reference["metadata"]["number"])

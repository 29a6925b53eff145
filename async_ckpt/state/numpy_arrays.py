"""numpy's arrays as views of memory, and back. Imported only where a state has some."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from . import safetensors
from .views import Place, Refused, View, span

_TAGS = {name: tag for tag, (_, _, name) in safetensors.TYPES.items() if name}
#: What its leaves are.
TYPE = np.ndarray
KIND = "$array"
NAMES = {tag: name for name, tag in _TAGS.items()}
ALIGNED = False
#: Booleans, numbers, times, bytes and text: what an array's type may be.
_KINDS = "biufcmMSU"


def describe(value: Any, number: int, name: str, leaf: dict[str, Any]) -> View:
    """The memory of an array.

    Raises
    ------
    Refused
        The format cannot hold it.
    """
    if type(value) not in (np.ndarray, np.memmap):
        raise Refused(
            f"a {type(value).__module__}.{type(value).__qualname__}",
            "Convert it to plain arrays (a masked one: its data and its mask), or save with pickle=True",
        )
    _check(value.dtype, "an array")
    start, end = _range(value)
    contiguous = value.flags.c_contiguous
    dtype = value.dtype.str
    return View(
        number, 0, start, end, name, _SELF, _TAGS.get(dtype, ""), dtype, value.itemsize, value.shape,
        () if contiguous else value.strides, contiguous, "", id(_root(value)), {}, leaf,
    )  # fmt: skip


def place(value: Any) -> Place:
    """What ``describe`` looks at, in short."""
    start, end = _range(value)
    return 0, start, end, id(_root(value)), (type(value), value.shape, value.strides, value.dtype)


def _range(value: Any) -> tuple[int, int]:
    """The addresses of its first byte, and after its last one."""
    start = value.__array_interface__["data"][0]
    if not value.nbytes:
        return start, start
    low, high = span(value.shape, value.strides)
    return start + low, start + high + value.itemsize


_SELF = sys.modules[__name__]


def unit(itemsize: int) -> int:
    """What one element has in the unit of strides."""
    return itemsize


def _check(dtype: Any, what: str) -> None:
    if dtype.hasobject:
        raise Refused(
            f"{what} of Python objects", "Convert it to a list or to an array of numbers, or save with pickle=True"
        )
    if dtype.kind not in _KINDS or np.dtype(dtype.str) != dtype:
        raise Refused(
            f"{what} of the type {dtype}",
            "View it as plain numbers (array.view(numpy.uint8)), or save with pickle=True",
        )


def _root(value: Any) -> Any:
    while isinstance(value.base, np.ndarray):
        value = value.base
    return value


def watched(values: list[Any]) -> list[Any]:
    """numpy does not count writes."""
    return []


def logical(view: View, value: Any) -> Any:
    """An array whose elements, in their order, are what the file has."""
    return value


def zeros(size: int) -> Any:
    return np.zeros(size, np.uint8)


def raw(value: Any, start: int, size: int) -> Any:
    """None: arrays have no storage, so that only ``memory`` has the bytes around them."""
    return None


def memory(start: int, size: int, keep: list[Any]) -> Any:
    """Bytes of memory as an array, which keeps those that they are of."""
    return np.asarray(_Memory(start, size, keep))


class _Memory:
    def __init__(self, start: int, size: int, keep: list[Any]) -> None:
        self._keep = keep
        self.__array_interface__ = {"data": (start, False), "shape": (size,), "typestr": "|u1", "version": 3}


# Reading.


def dtype_named(name: Any) -> tuple[Any, int]:
    """A type, and bytes of an element."""
    dtype = _dtype(name)
    return dtype, dtype.itemsize


def _dtype(name: Any) -> Any:
    if not isinstance(name, str) or not re.fullmatch(r"[<>|][biufcmMSU]\d+(\[\w+\])?", name):
        raise ValueError("a type of arrays is none")
    try:
        return np.dtype(name)
    except TypeError as error:
        raise UsageError(
            f"The state has arrays of the type {name}, which this numpy lacks", hint="Upgrade numpy"
        ) from error


def build(memory: tuple[Any, int], dtype: Any, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Any:
    """A view of a writable buffer, within which it must lie."""
    buffer, at = memory
    return np.ndarray(tuple(shape), dtype, buffer, at + offset, tuple(strides))


def alias(array: Any) -> Any:
    """Another array with the same memory."""
    return array.view()


def assign(target: Any, source: Any) -> None:
    np.copyto(target, source)


def relaid(array: Any, strides: Sequence[int]) -> Any:
    """The same elements, in memory as they were."""
    target = np.ndarray(array.shape, array.dtype, np.empty(array.nbytes, np.uint8), 0, tuple(strides))
    target[...] = array
    return target


def misfit(into: Any, dtype: Any, shape: Sequence[int]) -> str:
    """Why a stored array cannot be copied into ``into``; empty if it can."""
    if into.shape != tuple(shape) or into.dtype != dtype:
        return f"is {dtype}{list(shape)} in the checkpoint, and {into.dtype}{list(into.shape)} here"
    return "" if into.flags.writeable else "is read-only here"


# Scalars.


def encode_value(value: Any) -> Any:
    """JSON for a scalar of numpy, or for one of its types; None: it is neither."""
    if isinstance(value, np.generic):
        _check(value.dtype, "a scalar")
        data = value.tobytes()[: value.itemsize]  # Empty text has a size of 0, and yet some bytes.
        return {"$scalar": data.hex(), "dtype": value.dtype.str}
    if isinstance(value, np.dtype):
        _check(value, "a type")
        return {"$dtype": value.str}
    return None


def decode_value(mark: dict[str, Any]) -> Any:
    if "$dtype" in mark:
        return _dtype(mark["$dtype"])
    dtype, data = _dtype(mark["dtype"]), bytes.fromhex(mark["$scalar"])
    if len(data) != dtype.itemsize:
        raise ValueError("a scalar has another size than its type")
    return np.frombuffer(data, dtype)[0] if data else np.zeros((), dtype)[()]

"""Which bytes of memory a state's tensors are, and which of them share some.

Tensors whose bytes overlap are one *block* of the file, stored once, and share memory again when they are loaded. Any
other tensor is a block of its own. Blocks that follow each other in one storage do so in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

#: Where a tensor lies, in short: its device, first byte, end and storage as in ``View``, and all that makes it another
#: kind of tensor.
Place = tuple[int, int, int, int, tuple[Any, ...]]


class View(NamedTuple):
    """Where the bytes of a tensor or an array lie. It does not keep the tensor.

    Parameters
    ----------
    number : int
        Its place among those of the state.
    device : int
        The memory in which the addresses are valid: equal for tensors that can share bytes.
    start, end : int
        The addresses of its first byte, and after its last one; equal if it has none.
    name : str
        Its name in the file.
    library : module
        ``torch_tensors`` or ``numpy_arrays``.
    tag : str
        Its type in the safetensors format; empty if that has none.
    dtype : str
        What its library calls its type.
    itemsize : int
        Bytes of an element.
    shape, strides : tuple of int
        As its library says; ``strides`` are in elements (torch) or bytes (numpy), and empty where it is contiguous.
    contiguous : bool
        Its elements lie in order and without gaps.
    where : str
        The device to which it belongs; empty for the host's memory.
    storage : int
        What its storage is known by, among those that live: its address (torch) or its identity (numpy).
    flags : dict
        What else its leaf says.
    leaf : dict
        Where its mark is to be put.
    """

    number: int
    device: int
    start: int
    end: int
    name: str
    library: Any
    tag: str
    dtype: str
    itemsize: int
    shape: Sequence[int]
    strides: Sequence[int]
    contiguous: bool
    where: str
    storage: int
    flags: dict[str, Any]
    leaf: dict[str, Any]

    def same_bytes(self, other: View) -> bool:
        """Whether the other one is the same piece of memory, read in the same way."""
        return (
            self.start == other.start and self.end == other.end and self.library is other.library
            and self.dtype == other.dtype and self.shape == other.shape and self.strides == other.strides
            and self.flags.get("bits") == other.flags.get("bits")
        )  # fmt: skip


def span(shape: Iterable[int], strides: Iterable[int]) -> tuple[int, int]:
    """How far elements begin below and above the first one, in units of ``strides``."""
    low = high = 0
    for size, stride in zip(shape, strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high


def contiguous(shape: Sequence[int], unit: int) -> list[int]:
    """The strides of elements in order, in units of which an element has ``unit``."""
    strides: list[int] = []
    for size in reversed(shape):
        strides.insert(0, unit)
        unit *= max(size, 1)
    return strides


def is_dense(shape: Sequence[int], strides: Sequence[int], unit: int) -> bool:
    """Whether each byte from the first to the last is of one element: only the dimensions' order is another one."""
    expected = unit
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def first_element(view: View) -> int:
    """Its address: below it there is something where a stride is negative."""
    return view.start - sum(min((size - 1) * stride, 0) for size, stride in zip(view.shape, view.strides, strict=False))


def groups(views: list[View]) -> list[list[list[View]]]:
    """Which views share bytes.

    Returns
    -------
    list of list of list of View
        Groups of views that share bytes, in rows: those of a row follow each other in one storage, without gaps. Rows,
        and the views of a group, are sorted by number; the groups of a row by address.
    """
    rows: list[list[list[View]]] = []
    group: list[View] = []
    device, end = -1, 0
    for view in sorted(views, key=_ADDRESS):
        start = view.start
        if start == view.end:
            rows.append([[view]])
        elif view.device == device and start < end:
            group.append(view)
            end = max(end, view.end)
        else:
            new = [view]
            if view.device == device and start == end and _touch(group[-1], view):
                rows[-1].append(new)
            else:
                rows.append([new])
            group, device, end = new, view.device, view.end
    for row in rows:
        for group in row:
            if len(group) > 1:
                group.sort(key=_NUMBER)
    rows.sort(key=lambda row: row[0][0].number if len(row) == 1 else min(group[0].number for group in row))
    return rows


_ADDRESS, _NUMBER = itemgetter(1, 2), itemgetter(0)


def relations(places: list[Place]) -> list[tuple[int, int, int, bool]]:
    """What ``groups`` finds depends on these alone, and not on where in memory it is.

    Returns
    -------
    list of (int, int, int, bool)
        For each two tensors that lie one after the other in memory, and share bytes or a storage there: their numbers,
        how many bytes lie between their first ones, and whether it is one storage.
    """
    found = []
    memory, first, end, store, last = -1, 0, 0, 0, -1
    for device, start, number, stop, storage in sorted(
        (device, start, number, stop, storage) for number, (device, start, stop, storage, _) in enumerate(places)
    ):
        if start == stop:
            continue
        if device != memory or start > end:
            end = stop
        else:
            if start < end or storage == store:
                found.append((last, number, start - first, storage == store))
            end = max(end, stop)
        memory, first, store, last = device, start, storage, number
    return found


def _touch(one: View, other: View) -> bool:
    return one.library is other.library and one.storage == other.storage


class Refused(Exception):
    """A tensor or an array that cannot be kept.

    Parameters
    ----------
    what : str
        What it is: ``a sparse tensor``.
    hint : str
        The way out.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what, hint)
        self.what, self.hint = what, hint

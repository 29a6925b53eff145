"""The files of a state, written without a stager; and whether two states are the same, bit for bit."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from async_ckpt.state.plan import Plan, plan
from async_ckpt.state.read import PICKLE_FILE, STATE_FILE, STRUCTURE_FILE, read_state


def write(planned: Plan, directory: Path) -> None:
    """Write the files of a plan; those of an earlier one are replaced."""
    data = bytearray(b"\xee" * planned.size)  # What nobody writes to is seen.
    data[: len(planned.header)] = planned.header
    for piece in planned.pieces:
        place = memoryview(data)[piece.offset : piece.offset + piece.nbytes]
        if isinstance(piece.source, np.ndarray):
            np.ndarray(piece.source.shape, piece.source.dtype, place)[...] = piece.source
        else:
            torch = sys.modules["torch"]
            target = torch.frombuffer(place, dtype=torch.uint8).view(piece.source.dtype).view(piece.source.shape)
            target.copy_(piece.source)
    directory.mkdir(exist_ok=True)
    (directory / STATE_FILE).write_bytes(data)
    (directory / STRUCTURE_FILE).write_bytes(planned.structure)
    (directory / PICKLE_FILE).unlink(missing_ok=True)
    if planned.pickled is not None:
        (directory / PICKLE_FILE).write_bytes(planned.pickled)


def through(directory: Path, state: Any, *, pickle: bool = False, **options: Any) -> Any:
    """What is read of a state that was written."""
    write(plan(state, pickle=pickle), directory)
    return read_state(directory, pickle=pickle, **options)


def arrays(state: Any) -> Iterator[Any]:
    """All arrays and tensors of a state, in its order."""
    if isinstance(state, Mapping):
        for value in state.values():
            yield from arrays(value)
    elif hasattr(state, "shape") and not isinstance(state, np.generic):
        yield state
    elif isinstance(state, (list, tuple)) or type(state).__name__ == "deque":
        for value in state:
            yield from arrays(value)


def same(one: Any, other: Any) -> bool:
    """Whether two values are of the same types and have the same bits, in the same order."""
    if type(one) is not type(other):
        return {type(one), type(other)} == {np.memmap, np.ndarray} and same(np.asarray(one), np.asarray(other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, Mapping):
        attributes = getattr(one, "__dict__", {}), getattr(other, "__dict__", {})
        return same(list(one.items()), list(other.items())) and same(*(list(each.items()) for each in attributes))
    if isinstance(one, (list, tuple)) or type(one).__name__ == "deque":
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and sorted(map(repr, one)) == sorted(map(repr, other))
    if type(one).__module__.startswith("torch") and hasattr(one, "data_ptr"):
        return _same_tensors(one, other)
    return bool(one == other)


def _same_tensors(one: Any, other: Any) -> bool:
    torch = sys.modules["torch"]
    alike = one.dtype == other.dtype and one.shape == other.shape and one.requires_grad == other.requires_grad
    if not alike or one.device != other.device:
        return False
    if not one.numel():
        return True
    flat = []
    for each in (one.detach(), other.detach()):
        each = each.view(torch.uint8) if each.itemsize == 1 else each.resolve_conj().resolve_neg()
        flat.append(each.contiguous().view(-1).view(torch.uint8))
    return bool(torch.equal(*flat))

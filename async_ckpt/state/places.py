"""Where in the file of tensors the elements of a leaf are. The structure may say anything, so that all is checked."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import safetensors
from .tensor_file import TensorFile
from .views import contiguous, is_dense, span


class Place(NamedTuple):
    """Where the elements of a leaf are: bytes from where its block begins, strides as its library has them."""

    name: str
    block: tuple[int, int]
    dtype: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    #: The strides it had when its elements were put in order; None: it is a view of its block as it stands.
    was_strided: tuple[int, ...] | None

    def build(self, library: Any, memory: Any) -> Any:
        """The view of the block's memory."""
        return library.build(memory, self.dtype, self.offset, self.shape, self.strides)


def place_of(leaf: Any, file: TensorFile, library: Any) -> Place:
    """The place of a leaf.

    Raises
    ------
    ValueError, TypeError, LookupError
        The leaf and the file of tensors do not fit each other.
    UsageError
        ``library`` lacks the type of its elements.
    """
    if isinstance(leaf, str):
        leaf = {"in": leaf}
    name = leaf["in"]
    entry, block = file.entries[name], file.block(name)
    dtype, itemsize = library.dtype_named(leaf["dtype"] if "dtype" in leaf else library.NAMES[entry.tag])
    shape = leaf.get("shape", list(entry.shape))
    unit = library.unit(itemsize)
    if not safetensors.are_sizes(shape) or safetensors.product(shape) * itemsize >= 1 << 63:
        raise ValueError("a shape is no list of sizes")
    strides, offset = contiguous(shape, unit), entry.begin - block[0]
    if "strides" in leaf:
        strides = _integers(leaf["strides"], len(shape))
        offset += _integers([leaf["offset"]], 1)[0]
    elif safetensors.product(shape) * itemsize != entry.end - entry.begin:
        raise ValueError("a tensor has another size than its bytes")
    was_strided = leaf.get("was_strided")
    if was_strided is not None:
        if "strides" in leaf or not is_dense(shape, _integers(was_strided, len(shape)), unit):
            raise ValueError("a tensor would have had holes")
        was_strided = tuple(was_strided)
    if 0 in shape:
        strides, offset = contiguous(shape, unit), 0
    else:
        low, high = span(shape, strides)
        scale = 1 if unit == itemsize else itemsize
        if offset + low * scale < 0 or offset + high * scale + itemsize > block[1] - block[0]:
            raise ValueError("a tensor reaches beyond its bytes")
        if library.ALIGNED and (low < 0 or offset % itemsize):
            raise ValueError("a tensor is not aligned")
    return Place(name, block, dtype, offset, tuple(shape), tuple(strides), was_strided)


def _integers(values: Any, count: int) -> list[int]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError("strides are no list of their length")
    if any(type(one) is not int or abs(one) >= 1 << 63 for one in values):
        raise ValueError("strides are no numbers")
    return values

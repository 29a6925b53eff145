"""The places of a state's tensors in the file: their order, the header, and what their leaves say.

Tensors are sorted by the size of their elements, so that each is aligned. Which of them share bytes, and so a place, is
found in ``views.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from ..errors import UsageError
from . import safetensors
from .views import View, blocks, contiguous, first_element, is_dense

#: No type needs more.
_MAX_ALIGNMENT = 16


class Piece(NamedTuple):
    """A range of the file whose bytes are those of one source.

    Parameters
    ----------
    name : str
        Its first name in the header.
    offset : int
        Bytes from the start of the file; aligned for the source's type.
    nbytes : int
        Bytes; never 0.
    source : torch.Tensor or numpy.ndarray
        What the user gave, or a view of its memory; not copied, on whatever device. Its elements in their logical order
        are what the file holds. (Conjugated and negated tensors of torch are the exception: they are copies already.)
    watched : list of torch.Tensor
        ``_version`` of these changes when somebody writes to the bytes. Arrays of numpy, and tensors made in inference
        mode, have none.
    """

    name: str
    offset: int
    nbytes: int
    source: Any
    watched: list[Any]


class _Block(NamedTuple):
    """Bytes that lie together in the file; ``entries`` are (name, tag, shape, bytes) of the header."""

    alignment: int
    entries: list[tuple[str, str, Sequence[int], int]]
    source: Any
    watched: list[Any]


class Layout:
    """Lays out the file.

    Parameters
    ----------
    views : list of View
        Their leaves are completed.

    Attributes
    ----------
    header : bytes
        How the file begins.
    size : int
        Bytes of the file.
    pieces : list of Piece
        All bytes after the header, in their order.
    together : list of list of str
        Names of tensors that follow each other, and are one storage.
    """

    def __init__(self, views: list[View]) -> None:
        self.together: list[list[str]] = []
        laid = [self._block(group) for group in blocks(views)]
        laid.sort(key=itemgetter(0), reverse=True)
        entries: list[tuple[str, str, Sequence[int], int, int]] = []
        places: list[tuple[_Block, int, int]] = []
        position = 0
        for block in _aligned(laid, views):
            begin = position
            for name, tag, shape, size in block[1]:
                entries.append((name, tag, shape, position, position + size))
                position += size
            if position > begin:
                places.append((block, begin, position - begin))
        only_numpy = bool(views) and all(view.library.KIND == "$array" for view in views)
        self.header = safetensors.header(entries, {"format": "np" if only_numpy else "pt"})
        start = len(self.header)
        self.size = start + position
        self.pieces = [Piece(block[1][0][0], start + begin, size, block[2], block[3]) for block, begin, size in places]

    def _block(self, group: list[View]) -> _Block:
        first = group[0]
        if len(group) == 1 and first.contiguous and first.tag and not first.flags and not first.where:
            library, size = first.library, first.end - first.start  # As nearly all are: nothing has to be found out.
            first.leaf[library.KIND] = first.name
            entry = first.name, first.tag, first.shape, size
            return _Block(first.itemsize, [entry], first.value, library.watched(group))
        if len(group) == 1 or all(first.same_bytes(other) for other in group):
            if first.contiguous:
                return self._alone(group)
            unit = first.library.unit(first.itemsize)
            if is_dense(first.shape, first.strides, unit):
                return self._alone(group, was_strided=list(first.strides))
            if 0 not in first.strides and first.end - first.start >= safetensors.product(first.shape) * first.itemsize:
                return self._alone(group)
        in_order = sorted(group, key=attrgetter("start"))
        apart = all(one.end == other.start for one, other in itertools.pairwise(in_order))
        even = all(view.contiguous and view.itemsize == first.itemsize and "bits" not in view.flags for view in group)
        return self._row(in_order) if apart and even else self._shared(group)

    def _alone(self, group: list[View], **more: Any) -> _Block:
        """A tensor by itself, or several that are the same: its elements in their order."""
        first = group[0]
        for number, view in enumerate(group):
            flags = {key: flag for key, flag in view.flags.items() if key != "bits"}
            _complete(view, first.name, {**flags, **more, **({"alias": number} if number else {})})
        source, watched = first.library.logical(first), first.library.watched(group)
        return _Block(_alignment(first.itemsize), [_entry(first)], source, watched)

    def _row(self, views: list[View]) -> _Block:
        """Tensors that follow each other in one storage: each has its name, and their bytes stay together."""
        for view in views:
            _complete(view, view.name, dict(view.flags))
        self.together.append([view.name for view in views])
        first = views[0]
        source, watched = _memory(views, first.start, views[-1].end - first.start)
        return _Block(_alignment(first.itemsize), [_entry(view) for view in views], source, watched)

    def _shared(self, group: list[View]) -> _Block:
        """Tensors that share bytes: the file has the bytes as they lie in memory, from the first to the last."""
        first, largest = group[0], max(group, key=lambda view: _alignment(view.itemsize))
        alignment = _alignment(largest.itemsize)
        start, end = min(view.start for view in group), max(view.end for view in group)
        start -= (start - largest.start) % alignment
        for number, view in enumerate(group):
            offset = first_element(view) - start
            if view.library.ALIGNED and offset % view.itemsize:
                raise UsageError(
                    f"The tensors {first.name!r} and {view.name!r} share memory that is not aligned for both",
                    hint="Save a clone() of one",
                )
            place = {
                "dtype": view.dtype, "shape": list(view.shape), "offset": offset,
                "strides": list(view.strides) or contiguous(view.shape, view.library.unit(view.itemsize)),
            }  # fmt: skip
            _complete(view, first.name, {**place, **view.flags, **({"alias": number} if number else {})})
        size = end - start
        source, watched = _memory(group, start, size)
        if first.tag and size % first.itemsize == 0 and all(view.tag == first.tag for view in group):
            return _Block(alignment, [(first.name, first.tag, [size // first.itemsize], size)], source, watched)
        return _Block(alignment, [(first.name, "U8", [size], size)], source, watched)


def _aligned(blocks: Iterable[_Block], views: list[View]) -> Iterator[_Block]:
    """With padding where a block has a size that its type does not explain."""
    position = paddings = 0
    for block in blocks:
        gap = -position % block[0]
        if gap:
            paddings += 1
            name = safetensors.PADDING if paddings == 1 else f"{safetensors.PADDING}#{paddings}"
            yield _Block(1, [(name, "U8", [gap], gap)], views[0].library.zeros(gap), [])
        yield block
        position += gap + sum(size for _, _, _, size in block[1])


def _memory(group: list[View], start: int, size: int) -> tuple[Any, list[Any]]:
    """Bytes of memory as a tensor of its own, and the tensors that are watched.

    Where no storage has them all, because memory is shared by torch and numpy, they are an array of numpy.
    """
    watched = [tensor for view in group for tensor in view.library.watched([view])]
    sources = (view.library.raw(view, start, size) for view in group)
    source = next((source for source in sources if source is not None), None)
    if source is None:
        from . import numpy_arrays

        source = numpy_arrays.memory(start, size, [view.value for view in group])
    return source, watched


def _complete(view: View, name: str, more: dict[str, Any]) -> None:
    if not view.tag and "dtype" not in more:
        more.update(dtype=view.dtype, shape=list(view.shape))
    if view.where:
        more["device"] = view.where
    view.leaf[view.library.KIND] = {"in": name, **more} if more else name


def _entry(view: View) -> tuple[str, str, Sequence[int], int]:
    """What the header says of a tensor; one of a type that the format lacks is bytes."""
    shape = view.shape
    size = view.end - view.start if view.contiguous else safetensors.product(shape) * view.itemsize
    return (view.name, view.tag, shape, size) if view.tag else (view.name, "U8", [*shape, view.itemsize], size)


def _alignment(itemsize: int) -> int:
    return min(itemsize & -itemsize, _MAX_ALIGNMENT) or 1

"""The places of a state's tensors in the file: their order, the header, and what their leaves say.

Tensors are sorted by the size of their elements, so that each is aligned. Which of them share bytes, and so a place, is
found in ``views.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from ..errors import UsageError
from . import safetensors
from .views import View, contiguous, first_element, groups, is_dense

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
    address : int
        Where its bytes lie in the host's memory, in order and without gaps; -1: they do not.
    watched : list of torch.Tensor
        ``_version`` of one of these changes when somebody writes to the bytes. Empty if that is not so: arrays of
        numpy, and tensors made in inference mode, have no versions.
    """

    name: str
    offset: int
    nbytes: int
    source: Any
    address: int
    watched: list[Any]


class _Block(NamedTuple):
    """Bytes that lie together in the file.

    Parameters
    ----------
    alignment : int
        Of what is a multiple where it begins.
    entries : list of (str, str, sequence of int, int)
        Name, tag, shape and bytes of what the header has of it.
    views : list of View
        Whose bytes they are; of padding: empty.
    start : int
        Its address, if it is memory as it stands; else -1.
    memory : int or None
        Where its bytes begin, seen from the first byte of the first view, if they are those of all views as they lie in
        memory; None: they are the elements of the first one, in their order.
    """

    alignment: int
    entries: list[tuple[str, str, Sequence[int], int]]
    views: list[View]
    start: int
    memory: int | None = None


class Arrangement:
    """Arranges the file. It keeps none of the tensors, so that it serves again where others lie in the same places.

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
    leaves : list of dict
        Those of the views.
    together : list of list of str
        Names of tensors that follow each other, and are one storage.
    """

    def __init__(self, views: list[View]) -> None:
        self.leaves = [view.leaf for view in views]
        self.together: list[list[str]] = []
        blocks: list[_Block] = []
        for row in groups(views):
            blocks += [self._block(row[0])] if len(row) == 1 else self._row(row)
        blocks.sort(key=itemgetter(0), reverse=True)
        entries: list[tuple[str, str, Sequence[int], int, int]] = []
        self._places: list[tuple[_Block, int, int]] = []
        position = 0
        for block in _aligned(blocks):
            begin = position
            for name, tag, shape, size in block[1]:
                entries.append((name, tag, shape, position, position + size))
                position += size
            if position > begin:
                self._places.append((block, begin, position - begin))
        only_numpy = bool(views) and all(view.library.KIND == "$array" for view in views)
        self.header = safetensors.header(entries, {"format": "np" if only_numpy else "pt"})
        start = len(self.header)
        self.size = start + position
        self._library = views[0].library if views else None

    def pieces(self, values: list[Any], starts: list[int]) -> list[Piece]:
        """All bytes after the header, in their order.

        Parameters
        ----------
        values : list of torch.Tensor or numpy.ndarray
            Those of the views, in their order.
        starts : list of int
            The addresses of their first bytes.
        """
        pieces, start = [], len(self.header)
        for block, begin, size in self._places:
            views = block.views
            if not views:
                source, address, watched = self._zeros(size), -1, list[Any]()
            elif block.memory is not None:
                low = starts[views[0].number] + block.memory
                source, watched = _memory(views, values, low, size)
                address = low if views[0].device == 0 else -1
            else:
                first = views[0]
                source = first.library.logical(first, values[first.number])
                watched = first.library.watched([values[view.number] for view in views])
                address = starts[first.number] if block.start != -1 and first.device == 0 else -1
            pieces.append(Piece(block.entries[0][0], start + begin, size, source, address, watched))
        return pieces

    def _zeros(self, size: int) -> Any:
        assert self._library is not None  # Else there would be no padding.
        return self._library.zeros(size)

    def _block(self, group: list[View]) -> _Block:
        first = group[0]
        if len(group) == 1 and first.contiguous and first.tag and not first.flags:
            library, size = first.library, first.end - first.start  # As nearly all are: nothing has to be found out.
            first.leaf[library.KIND] = {"in": first.name, "device": first.where} if first.where else first.name
            entry = first.name, first.tag, first.shape, size
            return _Block(first.itemsize, [entry], group, first.start)
        if len(group) == 1 or all(first.same_bytes(other) for other in group):
            if first.contiguous:
                return self._alone(group)
            unit = first.library.unit(first.itemsize)
            if is_dense(first.shape, first.strides, unit):
                return self._alone(group, was_strided=list(first.strides))
            if 0 not in first.strides and first.end - first.start >= safetensors.product(first.shape) * first.itemsize:
                return self._alone(group)
        return self._shared(group)

    def _row(self, row: list[list[View]]) -> list[_Block]:
        """Blocks that follow each other in one storage, as one, so that they do it again; if all are aligned alike."""
        made = [self._block(group) for group in row]
        first = made[0]
        if any(block.start < 0 or block.alignment != first.alignment for block in made):
            return made
        entries = [entry for block in made for entry in block.entries]
        self.together.append([entry[0] for entry in entries])
        views = [view for group in row for view in group]
        return [_Block(first.alignment, entries, views, first.start, first.start - views[0].start)]

    def _alone(self, group: list[View], **more: Any) -> _Block:
        """A tensor by itself, or several that are the same: its elements in their order."""
        first = group[0]
        for number, view in enumerate(group):
            flags = {key: flag for key, flag in view.flags.items() if key != "bits"}
            _complete(view, first.name, {**flags, **more, **({"alias": number} if number else {})})
        start = first.start if first.contiguous and "bits" not in first.flags else -1
        return _Block(_alignment(first.itemsize), [_entry(first)], group, start)

    def _shared(self, group: list[View]) -> _Block:
        """Tensors that share bytes: the file has the bytes as they lie in memory, from the first to the last."""
        first, largest = group[0], max(group, key=lambda view: _alignment(view.itemsize))
        alignment = _alignment(largest.itemsize)
        start, end = min(view.start for view in group), max(view.end for view in group)
        below = (start - largest.start) % alignment
        start -= below
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
        entry = first.name, "U8", [size], size
        if first.tag and size % first.itemsize == 0 and all(view.tag == first.tag for view in group):
            entry = first.name, first.tag, [size // first.itemsize], size
        return _Block(alignment, [entry], group, -1 if below or size % alignment else start, start - first.start)


def _aligned(blocks: Iterable[_Block]) -> Iterator[_Block]:
    """With padding where a block has a size that its type does not explain."""
    position = paddings = 0
    for block in blocks:
        gap = -position % block[0]
        if gap:
            paddings += 1
            name = safetensors.PADDING if paddings == 1 else f"{safetensors.PADDING}#{paddings}"
            yield _Block(1, [(name, "U8", [gap], gap)], [], -1)
        yield block
        position += gap + sum(size for _, _, _, size in block[1])


def _memory(group: list[View], values: list[Any], start: int, size: int) -> tuple[Any, list[Any]]:
    """Bytes of memory as a tensor of its own, and the tensors that are watched.

    Where no storage has them all, because memory is shared by torch and numpy, they are an array of numpy.
    """
    counted = [view.library.watched([values[view.number]]) for view in group]
    watched = [tensor for one in counted for tensor in one] if all(counted) else []
    sources = (view.library.raw(values[view.number], start, size) for view in group)
    source = next((source for source in sources if source is not None), None)
    if source is None:
        from . import numpy_arrays

        source = numpy_arrays.memory(start, size, [values[view.number] for view in group])
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

"""Where each byte of a state goes in its files, before anything is copied.

The tensors become one file, ``state.safetensors``; what they stood in, and all plain values, ``state.json``. Tensors
that share memory are one *piece* of the file. docs/state.md says what the files hold.
"""

from __future__ import annotations

import itertools
import json
import pickle as pickles
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UsageError, shorten
from . import safetensors
from .tree import NOT_A_LEAF, Encoder, path_text
from .views import Refused, View, blocks, contiguous, is_dense

FORMAT = "async_ckpt.state"
VERSION = 1
#: Characters of a tensor's name, at most.
_NAME = 500
#: Where data is aligned to more than that, no type needs it.
_MAX_ALIGNMENT = 16
#: In the file of tensors: bytes that belong to nobody, so that the next tensor is aligned.
_PADDING = "__padding__"
_METADATA = "__metadata__"


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


@dataclass(frozen=True)
class Plan:
    """The files of one state.

    Parameters
    ----------
    header : bytes
        How ``state.safetensors`` begins; its length is a multiple of 64.
    size : int
        Bytes of that file.
    pieces : list of Piece
        All of its bytes after the header, without holes, but for ``padding``.
    padding : list of (int, int)
        Offset and length of bytes that no piece writes: zeros.
    structure : bytes
        ``state.json``.
    pickled : bytes or None
        ``state.pkl``; None: there is nothing to pickle.
    """

    header: bytes
    size: int
    pieces: list[Piece]
    structure: bytes
    pickled: bytes | None
    padding: list[tuple[int, int]]


def plan(state: Any, *, pickle: bool = False) -> Plan:
    """Plan the files of a state.

    Parameters
    ----------
    state : Any
        Dicts, lists, tuples and the like, of tensors, arrays and plain values. It is read, and not changed.
    pickle : bool
        Pickle what a state cannot keep otherwise.

    Raises
    ------
    UsageError
        The state holds what cannot be kept; says where, why, and the way out.
    """
    return _Planner(pickle).plan(state)


class _Block(NamedTuple):
    """Bytes that lie together in the file: ``entries`` are (name, tag, shape, bytes) of the header."""

    alignment: int
    entries: list[tuple[str, str, list[int], int]]
    source: Any
    watched: list[Any]


class _Planner:
    def __init__(self, pickle: bool) -> None:
        self._pickle = pickle
        self._pickled: list[tuple[Any, str]] = []
        self._views: list[View] = []
        #: The leaf of each tensor, by the tensor's number; it is completed when the tensor has its place in the file.
        self._leaves: list[dict[str, Any]] = []
        self._by_id: dict[int, dict[str, Any]] = {}
        self._paths: list[tuple[Any, ...]] = []
        self._names = {_METADATA}
        self._together: list[list[str]] = []
        self._encoder = Encoder(self._leaf, self._other)
        self._libraries = [module for module in (_torch(), _numpy()) if module is not None]

    def plan(self, state: Any) -> Plan:
        encoded = self._encoder.encode(state)
        with_memory = [view for view in self._views if view.end > view.start]
        laid = [self._block(group) for group in blocks(with_memory, self._adjacent)]
        laid += [self._alone(view, []) for view in self._views if view.end <= view.start]
        laid.sort(key=lambda block: -block.alignment)

        entries: list[tuple[str, str, list[int], int, int]] = []
        placed, padding, position = [], [], 0
        for block in laid:
            if position % block.alignment:
                gap = -position % block.alignment
                entries.append((self._unique(_PADDING), "U8", [gap], position, position + gap))
                padding.append((position, gap))
                position += gap
            begin = position
            for name, tag, shape, size in block.entries:
                entries.append((name, tag, shape, position, position + size))
                position += size
            if position > begin:
                placed.append((block, begin, position - begin))
        kinds = {view.kind for view in self._views}
        header = safetensors.header(entries, {"format": "np" if kinds == {"$array"} else "pt"})
        if len(header) > safetensors.MAX_HEADER_BYTES:
            raise UsageError(
                f"The state has {len(self._views)} tensors, whose names have {len(header)} bytes: too many",
                hint="Join small tensors, for example with torch.stack",
            )
        structure = {"format": FORMAT, "version": VERSION, "state": encoded}
        if self._together:
            structure["together"] = self._together
        start = len(header)
        return Plan(
            header=header,
            size=start + position,
            pieces=[
                Piece(block.entries[0][0], start + begin, size, block.source, block.watched)
                for block, begin, size in placed
            ],
            structure=json.dumps(structure, separators=(",", ":"), check_circular=False).encode(),
            pickled=self._pickles(),
            padding=[(start + begin, size) for begin, size in padding],
        )

    # The state's leaves.

    def _leaf(self, value: Any, path: list[Any], plain_only: bool) -> Any:
        known = self._by_id.get(id(value))
        if known is not None and not plain_only:
            return known
        try:
            for library in self._libraries:
                if library.is_leaf(value):
                    if plain_only:
                        raise Refused("a tensor or an array in a set or a key", "Keep it in a list instead")
                    view = library.describe(value, len(self._views))
                    leaf = self._by_id[id(value)] = {view.kind: None}
                    self._views.append(view)
                    self._leaves.append(leaf)
                    self._paths.append(tuple(path))
                    return leaf
                encoded = library.encode_value(value)
                if encoded is not None:
                    return encoded
        except Refused as refused:
            if not self._pickle:
                raise UsageError(
                    f"{path_text(path)} is {refused.what}: a state cannot keep it", hint=refused.hint
                ) from None
        return NOT_A_LEAF

    def _other(self, value: Any, path: list[Any], plain_only: bool) -> Any:
        if self._pickle:
            self._pickled.append((value, path_text(path)))
            return {"$pickle": len(self._pickled) - 1}
        module, name = type(value).__module__, type(value).__qualname__
        if module.split(".")[0] in ("jax", "jaxlib"):
            raise UsageError(f"{path_text(path)} is an array of jax", hint="Convert it with numpy.asarray(...)")
        raise UsageError(
            f"{path_text(path)} is a {module}.{name}, which a state cannot keep",
            hint="Convert it to tensors, arrays and plain values, take it out, or save with pickle=True",
        )

    def _pickles(self) -> bytes | None:
        if not self._pickled:
            return None
        try:
            return pickles.dumps([value for value, _ in self._pickled], protocol=4)
        except Exception:
            for value, where in self._pickled:
                try:
                    pickles.dumps(value, protocol=4)
                except Exception as error:
                    raise UsageError(
                        f"{where} cannot be pickled: {type(error).__name__}: {shorten(str(error), 200)}",
                        hint="Take it out of the state",
                    ) from error
            raise

    # Names.

    def _name(self, view: View) -> str:
        """The path of a tensor as text: ``model.layers.0.weight``."""
        text = ".".join(map(str, self._paths[view.number])) or "state"
        if len(text) > _NAME:
            text = f"{text[: _NAME - 20]}..."
        return self._unique(text if text.isascii() else text.encode("utf-8", "backslashreplace").decode())

    def _unique(self, text: str) -> str:
        name, number = text, 1
        while name in self._names:
            number += 1
            name = f"{text}#{number}"
        self._names.add(name)
        return name

    # The file's blocks.

    def _adjacent(self, one: View, other: View) -> bool:
        if one.kind != other.kind:
            return False
        library: Any = _torch() if one.kind == "$tensor" else _numpy()
        return bool(library.same_storage(one, other))

    def _block(self, group: list[View]) -> _Block:
        first = group[0]
        if len(group) == 1 or all(first.same_bytes(other) for other in group):
            if first.contiguous:
                return self._alone(first, group)
            if is_dense(first.shape, first.strides, 1 if first.kind == "$tensor" else first.itemsize):
                return self._alone(first, group, was_strided=list(first.strides))
            count = safetensors.product(first.shape)
            if 0 not in first.strides and first.end - first.start >= count * first.itemsize:
                return self._alone(first, group)
        in_order = sorted(group, key=lambda view: view.start)
        apart = all(one.end == other.start for one, other in itertools.pairwise(in_order))
        if apart and all(
            view.contiguous and view.itemsize == first.itemsize and not view.flags.get("bits") for view in group
        ):
            return self._row(in_order)
        return self._shared(group)

    def _alone(self, view: View, group: list[View], **more: Any) -> _Block:
        """A tensor by itself: its elements in their order."""
        name = self._name(view)
        library: Any = _torch() if view.kind == "$tensor" else _numpy()
        source = library.logical(view) if view.kind == "$tensor" else view.value
        for alias, other in enumerate(group or [view]):
            flags = {key: flag for key, flag in other.flags.items() if key != "bits"}
            self._complete(other, name, {**flags, **more, **({"alias": alias} if alias else {})})
        size = safetensors.product(view.shape) * view.itemsize
        watched = library.watched(group) if view.kind == "$tensor" else []
        return _Block(_alignment(view), [(name, *_stored(view), size)], source, watched)

    def _row(self, views: list[View]) -> _Block:
        """Tensors that follow each other in one storage: each has its name, and their bytes stay together."""
        names = [self._name(view) for view in views]
        for view, name in zip(views, names, strict=True):
            self._complete(view, name, dict(view.flags))
        self._together.append(names)
        entries = [(name, *_stored(view), view.end - view.start) for view, name in zip(views, names, strict=True)]
        source, watched = self._memory(views, views[0].start, views[-1].end - views[0].start)
        return _Block(_alignment(views[0]), entries, source, watched)

    def _shared(self, group: list[View]) -> _Block:
        """Tensors that share bytes: the file has the bytes as they lie in memory, from the first to the last."""
        start, end = min(view.start for view in group), max(view.end for view in group)
        largest = max(group, key=_alignment)
        alignment = _alignment(largest)
        start -= (start - largest.start) % alignment
        first = group[0]
        same = all(view.tag == first.tag for view in group) and (end - start) % first.itemsize == 0
        tag = first.tag if same and first.tag else "U8"
        name = self._name(first)
        for number, view in enumerate(group):
            offset = _first_element(view) - start
            if view.kind == "$tensor" and offset % view.itemsize:
                raise UsageError(
                    f"{path_text(self._paths[view.number])} shares memory with "
                    f"{path_text(self._paths[largest.number])}, at an address that is not aligned for it",
                    hint="Save a clone() of it",
                )
            strides = list(view.strides) or contiguous(view.shape, 1 if view.kind == "$tensor" else view.itemsize)
            place = {"dtype": view.dtype, "shape": list(view.shape), "strides": strides, "offset": offset}
            self._complete(view, name, {**place, **view.flags, **({"alias": number} if number else {})})
        source, watched = self._memory(group, start, end - start)
        size = end - start
        shape = [size // first.itemsize] if tag != "U8" else [size]
        return _Block(alignment, [(name, tag, shape, size)], source, watched)

    def _memory(self, group: list[View], start: int, size: int) -> tuple[Any, list[Any]]:
        tensors = [view for view in group if view.kind == "$tensor"]
        torch = _torch()
        watched = torch.watched(tensors) if tensors else []
        sources = (torch.raw(view, start, size) for view in tensors)
        source = next((source for source in sources if source is not None), None)
        if source is None:
            source = _numpy().raw(group, start, size)
        return source, watched

    def _complete(self, view: View, name: str, more: dict[str, Any]) -> None:
        if not view.tag and "dtype" not in more:
            more.update(dtype=view.dtype, shape=list(view.shape))
        if view.where:
            more["device"] = view.where
        self._leaves[view.number][view.kind] = {"in": name, **more} if more else name


def _stored(view: View) -> tuple[str, list[int]]:
    """What the header says of a tensor; one of a type that the format lacks is bytes."""
    shape = list(view.shape)
    return (view.tag, shape) if view.tag else ("U8", [*shape, view.itemsize])


def _alignment(view: View) -> int:
    size = view.itemsize
    return min(size & -size, _MAX_ALIGNMENT) if size else 1


def _first_element(view: View) -> int:
    """Its address: below it there is something where a stride is negative."""
    return view.start - sum(min((size - 1) * stride, 0) for size, stride in zip(view.shape, view.strides, strict=False))


def _torch() -> Any:
    """The module for torch's tensors; None where nobody has imported torch: then there are none."""
    if "torch" not in sys.modules:
        return None
    from . import torch_tensors

    return torch_tensors


def _numpy() -> Any:
    if "numpy" not in sys.modules:
        return None
    from . import numpy_arrays

    return numpy_arrays

"""Where each byte of a state goes in its files, before anything is copied.

The tensors become one file, ``state.safetensors``; what they stood in, and all plain values, ``state.json``.
docs/state.md says what the files hold.
"""

from __future__ import annotations

import gc
import json
import pickle as pickles
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UsageError, shorten
from . import safetensors
from .arrangement import Arrangement, Piece
from .encoder import NOT_A_LEAF, Encoder
from .tree import path_text
from .views import Refused, View, relations

FORMAT = "async_ckpt.state"
VERSION = 1
#: Characters of a tensor's name, at most.
_NAME = 500
#: A training loop may save several states in turn, such as a model's and an optimizer's.
_KEPT = 4


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
        All of its bytes after the header, without holes, in their order.
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


class Arrangements:
    """Those of the last few states: a training loop saves the same tensors again and again, and to arrange them takes
    most of the time that planning takes.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[_Key, Arrangement]] = []

    def find(self, key: _Key) -> Arrangement | None:
        return next((arrangement for known, arrangement in self._kept if known == key), None)

    def keep(self, key: _Key, arrangement: Arrangement) -> None:
        self._kept = [(key, arrangement), *self._kept][:_KEPT]  # At once, as other threads may plan as well.


def plan(state: Any, *, pickle: bool = False, known: Arrangements | None = None) -> Plan:
    """Plan the files of a state.

    Parameters
    ----------
    state : Any
        Dicts, lists, tuples and the like, of tensors, arrays and plain values. It is read, and not changed.
    pickle : bool
        Pickle what a state cannot keep otherwise.
    known : Arrangements, optional
        Of states that were planned before, of which this one may be the next.

    Raises
    ------
    UsageError
        The state holds what cannot be kept; says where, why, and the way out.
    """
    collects = gc.isenabled()
    gc.disable()  # Each tensor makes some objects: the collector would look through all of the process, for nothing.
    planner = _Planner(pickle, known or Arrangements())
    try:
        return planner.plan(state)
    finally:
        vars(planner).clear()  # It stands in a circle, and would keep the tensors until the collector comes by.
        if collects:
            gc.enable()


class _Tensor(NamedTuple):
    """A tensor or an array, its library, the keys that lead to it, and its leaf, which is completed later."""

    value: Any
    library: Any
    path: tuple[Any, ...]
    leaf: dict[str, Any]


#: Where the tensors of a state stand in it, their kinds, and how they share memory.
_Key = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[int, int, int, bool]]]


class _Planner:
    def __init__(self, pickle: bool, known: Arrangements) -> None:
        self._pickle, self._known = pickle, known
        self._pickled: list[tuple[Any, str]] = []
        self._tensors: list[_Tensor] = []
        #: Their addresses.
        self._starts: list[int] = []
        #: The leaf of each tensor, by the tensor's id.
        self._leaves: dict[int, dict[str, Any]] = {}
        self._names: set[str] = {safetensors.METADATA, safetensors.PADDING}
        self._encoder = Encoder(self._leaf, self._other)
        # Where nobody has imported them, there are none of their tensors.
        self._libraries: list[Any] = []
        if sys.modules.get("torch") is not None:
            from . import torch_tensors

            self._libraries.append(torch_tensors)
        if sys.modules.get("numpy") is not None:
            from . import numpy_arrays

            self._libraries.append(numpy_arrays)

    def plan(self, state: Any) -> Plan:
        encoded = self._encoder.encode(state)
        arranged = self._arranged()
        structure = {"format": FORMAT, "version": VERSION, "state": encoded}
        if arranged.together:
            structure["together"] = arranged.together
        text = json.dumps(structure, separators=(",", ":"), check_circular=False).encode()
        pieces = arranged.pieces([tensor.value for tensor in self._tensors], self._starts)
        return Plan(arranged.header, arranged.size, pieces, text, self._pickles())

    def _arranged(self) -> Arrangement:
        places = [tensor.library.place(tensor.value) for tensor in self._tensors]
        if None in places:
            return self._arrange()
        self._starts = [place[1] for place in places]
        key = [tensor.path for tensor in self._tensors], [place[4] for place in places], relations(places)
        arranged = self._known.find(key)
        if arranged is None:
            count = len(self._tensors)
            arranged = self._arrange()
            if len(self._tensors) == count:
                self._known.keep(key, arranged)
        else:
            for tensor, leaf in zip(self._tensors, arranged.leaves, strict=True):
                tensor.leaf.update(leaf)
        return arranged

    def _arrange(self) -> Arrangement:
        views: list[View] = []
        kept: list[_Tensor] = []
        for tensor in self._tensors:
            try:
                name = self._name(tensor.path)
                views.append(tensor.library.describe(tensor.value, len(views), name, tensor.leaf))
                kept.append(tensor)
            except Refused as refused:
                self._refuse(refused, tensor.path)
                tensor.leaf.update(self._other(tensor.value, tensor.path))
        arranged = Arrangement(views)
        if len(arranged.header) > safetensors.MAX_HEADER_BYTES:
            raise UsageError(
                f"The state has {len(views)} tensors, whose names have {len(arranged.header)} bytes: too many",
                hint="Join small tensors, for example with torch.stack",
            )
        self._tensors, self._starts = kept, [view.start for view in views]
        return arranged

    def _refuse(self, refused: Refused, path: Sequence[Any]) -> None:
        """Say why a state cannot keep something, unless it is pickled."""
        if not self._pickle:
            raise UsageError(
                f"{path_text(path)} is {refused.what}: a state cannot keep it", hint=refused.hint
            ) from None

    def _leaf(self, value: Any) -> Any:
        encoder = self._encoder
        known = self._leaves.get(id(value))
        if known is not None and not encoder.plain_only:
            return known
        try:
            for library in self._libraries:
                if isinstance(value, library.TYPE):
                    if encoder.plain_only:
                        raise Refused("a tensor or an array in a set or a key", "Keep it in a list instead")
                    leaf: dict[str, Any] = {}
                    self._tensors.append(_Tensor(value, library, tuple(encoder.path), leaf))
                    self._leaves[id(value)] = leaf
                    return leaf
                encoded = library.encode_value(value)
                if encoded is not None:
                    return encoded
        except Refused as refused:
            self._refuse(refused, encoder.path)
        return NOT_A_LEAF

    def _name(self, path: tuple[Any, ...]) -> str:
        """The path of a tensor as text, and no other tensor's: ``model.layers.0.weight``."""
        text = ".".join(map(str, path)) or "state"
        if len(text) > _NAME:
            text = f"{text[:_NAME]}..."
        if not text.isascii():
            text = text.encode("utf-8", "backslashreplace").decode()
        name, number = text, 1
        while name in self._names:
            number += 1
            name = f"{text}#{number}"
        self._names.add(name)
        return name

    # What is pickled.

    def _other(self, value: Any, path: Sequence[Any] | None = None) -> Any:
        where = path_text(self._encoder.path if path is None else path)
        if self._pickle:
            self._pickled.append((value, where))
            return {"$pickle": len(self._pickled) - 1}
        module, name = type(value).__module__, type(value).__qualname__
        if module.split(".")[0] in ("jax", "jaxlib"):
            raise UsageError(f"{where} is an array of jax", hint="Convert it with numpy.asarray(...)")
        way_out = "Convert it to tensors, arrays and plain values, take it out, or save with pickle=True"
        if callable(getattr(value, "state_dict", None)):  # A model, an optimizer: load_state_dict() takes it back.
            way_out = "Save its state_dict()"
        raise UsageError(f"{where} is a {module}.{name}, which a state cannot keep", hint=way_out)

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

"""Where each byte of a state goes in its files, before anything is copied.

The tensors become one file, ``state.safetensors``; what they stood in, and all plain values, ``state.json``.
docs/state.md says what the files hold.
"""

from __future__ import annotations

import gc
import json
import pickle as pickles
import sys
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, shorten
from . import safetensors
from .arrangement import Arrangement, Piece
from .encoder import NOT_A_LEAF, Encoder
from .tree import path_text
from .views import Refused, View

FORMAT = "async_ckpt.state"
VERSION = 1
#: Characters of a tensor's name, at most.
_NAME = 500


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
    collects = gc.isenabled()
    gc.disable()  # Each tensor makes some objects: the collector would look through all of the process, for nothing.
    planner = _Planner(pickle)
    try:
        return planner.plan(state)
    finally:
        vars(planner).clear()  # It stands in a circle, and would keep the tensors until the collector comes by.
        if collects:
            gc.enable()


class _Planner:
    def __init__(self, pickle: bool) -> None:
        self._pickle = pickle
        self._pickled: list[tuple[Any, str]] = []
        self._views: list[View] = []
        #: The leaf of each tensor, by the tensor's id; the arrangement completes it.
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
        arranged = Arrangement(self._views)
        if len(arranged.header) > safetensors.MAX_HEADER_BYTES:
            raise UsageError(
                f"The state has {len(self._views)} tensors, whose names have {len(arranged.header)} bytes: too many",
                hint="Join small tensors, for example with torch.stack",
            )
        structure = {"format": FORMAT, "version": VERSION, "state": encoded}
        if arranged.together:
            structure["together"] = arranged.together
        text = json.dumps(structure, separators=(",", ":"), check_circular=False).encode()
        return Plan(arranged.header, arranged.size, arranged.pieces, text, self._pickles())

    def _leaf(self, value: Any) -> Any:
        encoder = self._encoder
        known = self._leaves.get(id(value))
        if known is not None and not encoder.plain_only:
            return known
        try:
            for library in self._libraries:
                if library.is_leaf(value):
                    if encoder.plain_only:
                        raise Refused("a tensor or an array in a set or a key", "Keep it in a list instead")
                    leaf: dict[str, Any] = {}
                    self._views.append(library.describe(value, len(self._views), self._name(), leaf))
                    self._leaves[id(value)] = leaf
                    return leaf
                encoded = library.encode_value(value)
                if encoded is not None:
                    return encoded
        except Refused as refused:
            if not self._pickle:
                raise UsageError(
                    f"{path_text(encoder.path)} is {refused.what}: a state cannot keep it", hint=refused.hint
                ) from None
        return NOT_A_LEAF

    def _name(self) -> str:
        """The path of a tensor as text, and no other tensor's: ``model.layers.0.weight``."""
        text = ".".join(map(str, self._encoder.path)) or "state"
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

    def _other(self, value: Any) -> Any:
        where = path_text(self._encoder.path)
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

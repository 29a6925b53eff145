"""Reads a state from JSON values; ``tree.py`` says how they look."""

from __future__ import annotations

import base64
import binascii
import enum
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError, IntegrityError, UsageError, shorten
from .tree import FACTORIES, find_class, path_text

#: In place of a part of ``into``: there is nothing to copy into, take what is stored.
NOTHING: Any = object()

#: Marks of what can have tensors in it. All else is plain.
_WITH_TENSORS = {
    "$tensor", "$array", "$tuple", "$dict", "$ordered", "$defaultdict", "$counter", "$deque", "$namedtuple"
}  # fmt: skip

#: Reads a leaf: gets the mark's object, the part of ``into`` at its place, and the keys that lead to it.
Leaf = Callable[[dict[str, Any], Any, list[Any]], Any]


class Comparison:
    """Is told how a state and ``into`` differ, with the keys that lead there; this one does not mind."""

    def missing(self, encoded: Any, parts: Mapping[Any, Any], path: list[Any]) -> None:
        """A part of the state is missing among the parts of a dict of ``into``."""

    def extra(self, part: Any, path: list[Any]) -> None:
        """The state has nothing for a part of ``into``."""

    def other(self, encoded: Any, part: Any, path: list[Any]) -> None:
        """A part of the state is of another kind or length than that of ``into``."""


class Decoder:
    """Reads one state.

    Parameters
    ----------
    leaves : dict
        The marks of leaves, each with what reads one.
    comparison : Comparison, optional
        Is told how the state and ``into`` differ.
    """

    def __init__(
        self,
        leaves: Mapping[str, Leaf],
        comparison: Comparison | None = None,
    ) -> None:
        self._leaves, self._comparison = leaves, comparison or Comparison()
        self._path: list[Any] = []
        self._marks: dict[str, Callable[[dict[str, Any], Any], Any]] = {
            "$tuple": lambda mark, into: tuple(self._items(mark["$tuple"], into)),
            "$dict": lambda mark, into: self._entries(mark["$dict"], into),
            "$ordered": self._ordered,
            "$defaultdict": self._defaultdict,
            "$counter": lambda mark, into: Counter(self._entries(mark["$counter"], into)),
            "$deque": lambda mark, into: deque(self._items(mark["$deque"], into), mark["maxlen"]),
            "$set": lambda mark, into: set(self._items(mark["$set"], NOTHING)),
            "$frozenset": lambda mark, into: frozenset(self._items(mark["$frozenset"], NOTHING)),
            "$namedtuple": self._namedtuple,
            "$text": lambda mark, into: _unbase64(mark["$text"]).decode("utf-8", "surrogatepass"),
            "$int": lambda mark, into: int(mark["$int"], 16),
            "$float": lambda mark, into: struct.unpack(">d", bytes.fromhex(mark["$float"]))[0],
            "$complex": lambda mark, into: complex(*struct.unpack(">dd", bytes.fromhex(mark["$complex"]))),
            "$bytes": lambda mark, into: _unbase64(mark["$bytes"]),
            "$bytearray": lambda mark, into: bytearray(_unbase64(mark["$bytearray"])),
            "$range": lambda mark, into: range(*self._items(mark["$range"], NOTHING)),
            "$slice": lambda mark, into: slice(*self._items(mark["$slice"], NOTHING)),
            "$path": lambda mark, into: pathlib.Path(self._value(mark["$path"], NOTHING)),
            "$enum": self._enum,
        }

    def decode(self, encoded: Any, into: Any = NOTHING) -> Any:
        """The state.

        Raises
        ------
        IntegrityError
            It is not what ``Encoder`` writes.
        UsageError
            A class is not known here.
        """
        try:
            return self._value(encoded, into)
        except CheckpointError:
            raise
        except (
            TypeError,
            ValueError,
            LookupError,
            OverflowError,
            AttributeError,
            RecursionError,
            struct.error,
        ) as error:
            raise IntegrityError(
                f"The structure of the state is damaged at {path_text(self._path)}: {type(error).__name__}: {error}"
            ) from error

    def _value(self, encoded: Any, into: Any) -> Any:
        if type(encoded) is list:
            return self._items(encoded, into)
        if type(encoded) is not dict:
            self._compare(encoded, into, True)
            return encoded
        mark = next(iter(encoded), "")
        if mark[:1] != "$":
            return self._entries(encoded, into)
        if mark not in _WITH_TENSORS:
            self._compare(encoded, into, True)
        leaf = self._leaves.get(mark)
        if leaf is not None:
            return leaf(encoded, into, self._path)
        read = self._marks.get(mark)
        if read is None:
            raise IntegrityError(
                f"The structure of the state has an unknown mark {shorten(mark, 40)!r} at {path_text(self._path)}",
                hint="Upgrade metaflow-async-ckpt, if a newer version wrote it",
            )
        return read(encoded, into)

    def _items(self, encoded: Any, into: Any) -> list[Any]:
        if type(encoded) is not list:
            raise TypeError("a list is missing")
        parts = into if isinstance(into, (list, tuple, deque)) and len(into) == len(encoded) else None
        self._compare(encoded, into, parts is None)
        items = []
        for index, item in enumerate(encoded):
            self._path.append(index)
            items.append(self._value(item, NOTHING if parts is None else parts[index]))
            self._path.pop()
        return items

    def _entries(self, encoded: Any, into: Any) -> dict[Any, Any]:
        if type(encoded) is not dict and type(encoded) is not list:
            raise TypeError("the entries of a dict are missing")
        named = type(encoded) is dict
        parts: Mapping[Any, Any] = into if isinstance(into, Mapping) else {}
        self._compare(encoded, into, not isinstance(into, Mapping))
        entries: dict[Any, Any] = {}
        pairs: Any = encoded.items() if type(encoded) is dict else encoded
        for key, item in pairs:
            if not named:
                key = self._value(key, NOTHING)
            self._path.append(key)
            if parts and key not in parts:
                self._comparison.missing(item, parts, self._path)
            entries[key] = self._value(item, parts.get(key, NOTHING))
            self._path.pop()
        for key in parts:
            if key not in entries:
                self._comparison.extra(parts[key], [*self._path, key])
        return entries

    def _compare(self, encoded: Any, into: Any, other: bool) -> None:
        if other and into is not NOTHING and into is not None and not _is_empty(into):
            self._comparison.other(encoded, into, self._path)

    def _ordered(self, mark: dict[str, Any], into: Any) -> OrderedDict[Any, Any]:
        value = OrderedDict(self._entries(mark["$ordered"], into))
        vars(value).update(self._entries(mark.get("attributes", {}), NOTHING))
        return value

    def _defaultdict(self, mark: dict[str, Any], into: Any) -> defaultdict[Any, Any]:
        name = mark["factory"]
        return defaultdict(None if name is None else FACTORIES[name], self._entries(mark["$defaultdict"], into))

    def _namedtuple(self, mark: dict[str, Any], into: Any) -> Any:
        kind = self._class(mark["class"], tuple)
        if list(getattr(kind, "_fields", ())) != mark["fields"]:
            raise UsageError(
                f"{mark['class']} at {path_text(self._path)} has other fields than when it was saved",
                hint="Load it with the version of your code that saved it",
            )
        items = self._items(mark["$namedtuple"], into)
        if len(items) != len(mark["fields"]):
            raise ValueError("a named tuple with too few or too many items")
        return tuple.__new__(kind, items)

    def _enum(self, mark: dict[str, Any], into: Any) -> Any:
        kind, name = self._class(mark["class"], enum.Enum), mark["$enum"]
        if name not in kind.__members__:
            raise UsageError(
                f"{mark['class']} at {path_text(self._path)} has no member {shorten(str(name), 80)!r}",
                hint="Load it with the version of your code that saved it",
            )
        return kind.__members__[name]

    def _class(self, name: Any, base: type) -> Any:
        kind = find_class(name)
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise UsageError(
                f"The class {shorten(str(name), 100)} of {path_text(self._path)} is not known here",
                hint="Import the module that defines it before you load the state",
            )
        return kind


def _is_empty(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, deque)) and not value


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("bytes are not in base 64") from error

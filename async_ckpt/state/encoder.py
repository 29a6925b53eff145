"""Writes a state as JSON values; ``tree.py`` says how they look."""

from __future__ import annotations

import base64
import enum
import math
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UsageError
from .tree import FACTORIES, MAX_DEPTH, find_class, path_text

#: Longer whole numbers are written in base 16: Python converts no longer ones from base 10.
_DECIMAL_BITS = 14_000

#: What a leaf's hook answers if the value is none of its own.
NOT_A_LEAF = object()


class Encoder:
    """Writes one state.

    Parameters
    ----------
    leaf : callable
        Gets a value that is not plain, and returns JSON, or ``NOT_A_LEAF``.
    other : callable
        The same for what is nothing of all that; it may raise ``UsageError``.

    Attributes
    ----------
    path : list
        The keys that lead to what is being written.
    plain_only : bool
        Whether it is part of a set or of a key.
    """

    def __init__(self, leaf: Callable[[Any], Any], other: Callable[[Any], Any]) -> None:
        self._leaf, self._other = leaf, other
        self.path: list[Any] = []
        self._open: set[int] = set()
        self.plain_only = False
        self._kinds: dict[type, Callable[[Any], Any]] = {
            str: _text, int: _int, bool: _same, type(None): _same, float: _float, complex: _complex, bytes: _bytes,
            bytearray: _bytearray, range: _range, type(pathlib.Path()): _pathname, dict: self._dict, list: self._items,
            tuple: self._tuple, OrderedDict: self._ordered, set: self._set, frozenset: self._frozenset,
            defaultdict: self._defaultdict, Counter: self._counter, deque: self._deque, slice: self._slice,
        }  # fmt: skip

    def encode(self, value: Any) -> Any:
        """JSON for ``value``.

        Raises
        ------
        UsageError
            A value that is neither plain nor a leaf, contains itself, or is nested too deep.
        """
        write = self._kinds.get(type(value))
        if write is not None:
            return write(value)
        encoded = self._leaf(value)
        if encoded is NOT_A_LEAF and isinstance(value, enum.Enum):
            encoded = self._enum(value)
        if encoded is NOT_A_LEAF and isinstance(value, tuple) and isinstance(getattr(value, "_fields", None), tuple):
            encoded = self._namedtuple(value)
        return self._other(value) if encoded is NOT_A_LEAF else encoded

    # Containers.

    def _enter(self, value: Any) -> None:
        if id(value) in self._open:
            raise UsageError(f"{path_text(self.path)} contains itself", hint="Take it out: a state has no circles")
        if len(self._open) >= MAX_DEPTH:
            raise UsageError(f"{path_text(self.path)} is nested deeper than {MAX_DEPTH} levels", hint="Make it flatter")
        self._open.add(id(value))

    def _items(self, value: Any) -> list[Any]:
        self._enter(value)
        encode, path, items = self.encode, self.path, []
        for index, item in enumerate(list(value)):
            path.append(index)
            items.append(encode(item))
            path.pop()
        self._open.remove(id(value))
        return items

    def _entries(self, value: Mapping[Any, Any]) -> Any:
        """An object if all keys are plain text, else a list of pairs."""
        self._enter(value)
        encode, path = self.encode, self.path
        items = list(value.items())
        entries: Any
        if all(map(_is_plain_key, value)):
            entries = {}
            for key, item in items:
                path.append(key)
                entries[key] = encode(item)
                path.pop()
        else:
            entries = []
            for key, item in items:
                path.append(key)
                entries.append([self._plain(key), encode(item)])
                path.pop()
        self._open.remove(id(value))
        return entries

    def _plain(self, value: Any) -> Any:
        before, self.plain_only = self.plain_only, True
        try:
            return self.encode(value)
        finally:
            self.plain_only = before

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        return {"$tuple": self._items(value)}

    def _dict(self, value: dict[Any, Any]) -> Any:
        entries = self._entries(value)
        return entries if isinstance(entries, dict) else {"$dict": entries}

    def _ordered(self, value: OrderedDict[Any, Any]) -> Any:
        """With its attributes: a state_dict of torch has its modules' versions in one."""
        entries = self._entries(value)
        attributes = vars(value)
        if not attributes:
            return {"$ordered": entries}
        return {"$ordered": entries, "attributes": self._entries(attributes)}

    def _defaultdict(self, value: defaultdict[Any, Any]) -> Any:
        factory = value.default_factory
        name = next((name for name, known in FACTORIES.items() if known is factory), None)
        if factory is not None and name is None:
            return self._other(value)
        return {"$defaultdict": self._entries(value), "factory": name}

    def _counter(self, value: Counter[Any]) -> Any:
        return {"$counter": self._entries(value)}

    def _deque(self, value: deque[Any]) -> Any:
        return {"$deque": self._items(value), "maxlen": value.maxlen}

    def _set(self, value: set[Any]) -> Any:
        return {"$set": self._plain_items(value)}

    def _frozenset(self, value: frozenset[Any]) -> Any:
        return {"$frozenset": self._plain_items(value)}

    def _plain_items(self, value: Iterable[Any]) -> list[Any]:
        before, self.plain_only = self.plain_only, True
        try:
            return self._items(value)
        finally:
            self.plain_only = before

    def _namedtuple(self, value: Any) -> Any:
        name = _class_name(value)
        if name is None:
            return NOT_A_LEAF
        return {"$namedtuple": self._items(value), "class": name, "fields": list(value._fields)}

    def _enum(self, value: enum.Enum) -> Any:
        name = _class_name(value)  # A combination of flags has no name of its own.
        return (
            NOT_A_LEAF
            if name is None or value.name not in type(value).__members__
            else {"$enum": value.name, "class": name}
        )

    def _slice(self, value: slice) -> Any:
        return {"$slice": [self._plain(part) for part in (value.start, value.stop, value.step)]}


# Plain values that JSON does not have.


def _text(value: str) -> Any:
    return (
        value if value.isascii() or _is_unicode(value) else {"$text": _base64(value.encode("utf-8", "surrogatepass"))}
    )


def _int(value: int) -> Any:
    return value if value.bit_length() <= _DECIMAL_BITS else {"$int": format(value, "x")}


def _float(value: float) -> Any:
    return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}


def _complex(value: complex) -> Any:
    return {"$complex": struct.pack(">dd", value.real, value.imag).hex()}


def _bytes(value: bytes) -> Any:
    return {"$bytes": _base64(value)}


def _bytearray(value: bytearray) -> Any:
    return {"$bytearray": _base64(value)}


def _range(value: range) -> Any:
    return {"$range": [_int(part) for part in (value.start, value.stop, value.step)]}


def _pathname(value: pathlib.Path) -> Any:
    return {"$path": _text(str(value))}


def _class_name(value: Any) -> str | None:
    """By which a decoder finds a class; None: it would not."""
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    return name if find_class(name) is kind else None


def _same(value: Any) -> Any:
    return value


def _is_plain_key(key: Any) -> bool:
    return type(key) is str and key[:1] != "$" and (key.isascii() or _is_unicode(key))


def _is_unicode(value: str) -> bool:
    """Whether JSON gives it back: halves of surrogate pairs would be joined."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()

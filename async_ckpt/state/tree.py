"""A nested state as JSON values, and back.

Plain JSON stays as it is: None, booleans, whole numbers, finite floats, text, lists, and dicts whose keys are text.
Everything else is an object whose first key is a *mark*, which begins with ``$``: ``{"$tuple": [1, 2]}``. A dict that
has such a key itself is written as pairs. Tensors and arrays are *leaves*: hooks of the caller write and read them.
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
import pathlib
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import CheckpointError, IntegrityError, UsageError, shorten

#: Containers within each other, at most. Python's own reader of JSON gives up soon above it.
MAX_DEPTH = 200
#: Longer whole numbers are written in base 16: Python converts no longer ones from base 10.
_DECIMAL_BITS = 14_000
#: Characters of the path of a value that stand in an error.
_SHOWN = 200

#: What a leaf's hook answers if the value is none of its own.
NOT_A_LEAF = object()
#: In place of a part of ``into``: there is nothing to copy into, take what is stored.
NOTHING: Any = object()

#: The factories that a defaultdict may have.
_FACTORIES: dict[str, Callable[[], Any]] = {
    "int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "set": set, "tuple": tuple,
}  # fmt: skip


#: Reads a leaf: gets the mark's object, the part of ``into`` at its place, and the keys that lead to it.
Leaf = Callable[[dict[str, Any], Any, list[Any]], Any]


def path_text(path: Iterable[Any]) -> str:
    """How a user writes the way to a value: ``state['model'][0]``."""
    return shorten("state" + "".join(f"[{key!r}]" for key in path), _SHOWN)


class Encoder:
    """Writes one state.

    Parameters
    ----------
    leaf : callable
        Gets a value that is not plain, the keys that lead to it, and whether it has to be plain: it stands in a set or
        is a key. Returns JSON, or ``NOT_A_LEAF``.
    other : callable
        The same for what is nothing of all that; it may raise ``UsageError``.
    """

    def __init__(
        self, leaf: Callable[[Any, list[Any], bool], Any], other: Callable[[Any, list[Any], bool], Any]
    ) -> None:
        self._leaf, self._other = leaf, other
        self._path: list[Any] = []
        self._open: set[int] = set()
        self._plain_only = False
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
        encoded = self._leaf(value, self._path, self._plain_only)
        if encoded is NOT_A_LEAF and isinstance(value, enum.Enum):
            encoded = self._enum(value)
        if encoded is NOT_A_LEAF and isinstance(value, tuple) and isinstance(getattr(value, "_fields", None), tuple):
            encoded = self._namedtuple(value)
        return self._other(value, self._path, self._plain_only) if encoded is NOT_A_LEAF else encoded

    # Containers.

    def _enter(self, value: Any) -> None:
        if id(value) in self._open:
            raise UsageError(f"{path_text(self._path)} contains itself", hint="Take it out: a state has no circles")
        if len(self._open) >= MAX_DEPTH:
            raise UsageError(
                f"{path_text(self._path)} is nested deeper than {MAX_DEPTH} levels", hint="Make it flatter"
            )
        self._open.add(id(value))

    def _items(self, value: Any) -> list[Any]:
        self._enter(value)
        encode, path, items = self.encode, self._path, []
        for index, item in enumerate(list(value)):
            path.append(index)
            items.append(encode(item))
            path.pop()
        self._open.remove(id(value))
        return items

    def _entries(self, value: Mapping[Any, Any]) -> Any:
        """An object if all keys are plain text, else a list of pairs."""
        self._enter(value)
        encode, path = self.encode, self._path
        entries: dict[str, Any] = {}
        pairs: list[Any] = []
        for key, item in list(value.items()):
            path.append(key)
            if type(key) is str and key[:1] != "$" and (key.isascii() or _is_unicode(key)):
                entries[key] = item = encode(item)
                pairs.append([key, item])
            else:
                pairs.append([self._plain(key), encode(item)])
            path.pop()
        self._open.remove(id(value))
        return entries if len(entries) == len(pairs) else pairs

    def _plain(self, value: Any) -> Any:
        before, self._plain_only = self._plain_only, True
        try:
            return self.encode(value)
        finally:
            self._plain_only = before

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
        name = next((name for name, known in _FACTORIES.items() if known is factory), None)
        if factory is not None and name is None:
            return self._other(value, self._path, self._plain_only)
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
        before, self._plain_only = self._plain_only, True
        try:
            return self._items(value)
        finally:
            self._plain_only = before

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
    return name if _find(name) is kind else None


class Decoder:
    """Reads one state.

    Parameters
    ----------
    leaves : dict
        The marks of leaves, each with what reads one.
    differs : callable
        Is told what has no counterpart: JSON, the part of ``into`` in its place, and the keys. One of the two may be
        ``NOTHING``.
    """

    def __init__(
        self,
        leaves: Mapping[str, Leaf],
        differs: Callable[[Any, Any, list[Any]], None] = lambda encoded, into, path: None,
    ) -> None:
        self._leaves, self._differs = leaves, differs
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
        except (TypeError, ValueError, LookupError, OverflowError, AttributeError, RecursionError) as error:
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
                self._differs(item, NOTHING, self._path)
            entries[key] = self._value(item, parts.get(key, NOTHING))
            self._path.pop()
        for key in parts:
            if key not in entries:
                self._differs(NOTHING, parts[key], [*self._path, key])
        return entries

    def _compare(self, encoded: Any, into: Any, other: bool) -> None:
        if other and into is not NOTHING and into is not None and not _is_empty(into):
            self._differs(encoded, into, self._path)

    def _ordered(self, mark: dict[str, Any], into: Any) -> OrderedDict[Any, Any]:
        value = OrderedDict(self._entries(mark["$ordered"], into))
        for name, attribute in self._entries(mark.get("attributes", {}), NOTHING).items():
            setattr(value, name, attribute)
        return value

    def _defaultdict(self, mark: dict[str, Any], into: Any) -> defaultdict[Any, Any]:
        name = mark["factory"]
        return defaultdict(None if name is None else _FACTORIES[name], self._entries(mark["$defaultdict"], into))

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
        kind = _find(name)
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise UsageError(
                f"The class {shorten(str(name), 100)} of {path_text(self._path)} is not known here",
                hint="Import the module that defines it before you load the state",
            )
        return kind


def _is_empty(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, deque)) and not value


def _same(value: Any) -> Any:
    return value


def _is_unicode(value: str) -> bool:
    """Whether JSON gives it back: halves of surrogate pairs would be joined."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("bytes are not in base 64") from error


def _find(name: str) -> Any:
    """The class ``module:qualified.name``, if its module is imported already: a file cannot say what to import."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found

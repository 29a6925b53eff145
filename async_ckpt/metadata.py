"""The user's metadata as plain JSON values.

``plain`` makes JSON values of whatever a training loop has at hand: numbers of numpy and torch (known by what they
can do, neither is imported), dates, paths, sets, dataclasses. It reads the user's objects and keeps none of them. It
never fails: what has no JSON value is kept as its ``repr``, and what is too large, too deep or contains itself is
replaced by a short text. Each time there is a ``MetadataNote`` for people. Where several ranks save one checkpoint,
equal metadata becomes equal JSON on all of them: sets are sorted, and addresses are taken out of a ``repr``.

NaN and Infinity are kept for Python, in memory and in the store; ``printable`` has what other programs read.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import math
import numbers
import operator
import os
import re
import types
import uuid
from collections import Counter
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, Set, ValuesView
from typing import Any, NamedTuple

from .config import METADATA_DEPTH, METADATA_ELEMENTS, METADATA_NOTICE_BYTES, Config
from .errors import shorten

#: Characters of a ``repr``, and of a key's text, that are kept.
_MAX_TEXT = 1000
#: Characters of a key, or of a text, that stand in a line for people.
_SHOWN = 80
#: Notes about one metadata, and about all of a task.
_MAX_NOTES, _MAX_SAID = 10, 50
#: So many times the elements of one value are read in all, so that nobody waits for long for what is not kept.
_PATIENCE = 10
#: Python reads and writes no longer integers as decimal text (``sys.int_info.default_max_str_digits``).
_MAX_BITS = 14_000
#: Upper bounds in bytes of JSON: a float, a bool or None; what stands between two values.
_SMALL, _BETWEEN = 24, 2
#: Limits of ordinary metadata, which needs no conversion: entries in all, characters of a text, and bytes of an
#: entry as JSON.
_FEW, _SHORT, _SMALL_BYTES = 32, 100, 2 << 10
_LONG = 1 << 63

_encode = json.encoder.encode_basestring_ascii
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class MetadataNote(NamedTuple):
    """A line for people about one entry; ``key`` is its dotted path, empty for the metadata as a whole."""

    key: str
    line: str


class _NotKept(Exception):
    """Why a value is replaced by a text."""


def plain(metadata: Any, config: Config) -> tuple[Any, list[MetadataNote]]:
    """JSON values for the user's metadata; a deep copy.

    Parameters
    ----------
    metadata : Any
        A dict as a rule, None for an empty one. Whatever else there is, a list or a number, is kept as it is.
    config : Config
        ``metadata_bytes`` counts.

    Returns
    -------
    Any, list of MetadataNote
        What ``json.dumps`` takes, and what people should know.
    """
    if metadata is None:
        return {}, []
    if config.metadata_bytes // _SMALL_BYTES >= _FEW:
        with contextlib.suppress(_NotSimple):
            return _copy(metadata, [_FEW]), []
    return _Conversion(config).convert(metadata)


class _NotSimple(Exception):
    """Not JSON, or not small, at first sight."""


def _copy(value: Any, left: list[int]) -> Any:
    """The short way for ordinary metadata: a copy of what is JSON already; ``left``: so many entries it may have."""
    kind = type(value)
    if (
        kind is float or value is None or kind is bool
        or (kind is int and -_LONG < value < _LONG)
        or (kind is str and len(value) <= _SHORT)
    ):  # fmt: skip
        return value
    if kind is not dict and kind is not list:
        raise _NotSimple
    left[0] -= len(value)
    if left[0] < 0:
        raise _NotSimple
    if kind is list:
        return [_copy(item, left) for item in value]
    copied = {}
    for key, item in value.copy().items():  # Of a copy: another thread may change the original.
        if type(key) is not str or len(key) > _SHORT:
            raise _NotSimple
        copied[key] = _copy(item, left)
    return copied


#: The key of the note about the size of all; no dotted path has it.
SIZE = "\0size"


class _Conversion:
    """Converts one metadata."""

    def __init__(self, config: Config) -> None:
        self._max_bytes = config.metadata_bytes
        self._notes: dict[str, str] = {}
        self._unnamed = 0
        self._path: list[str] = []
        #: What is being read, by id: what is met again contains itself.
        self._open: set[int] = set()
        #: Elements and bytes that the entry which is being read may still have, and elements that are read in all.
        self._elements, self._bytes = METADATA_ELEMENTS, self._max_bytes
        self._patience = _PATIENCE * METADATA_ELEMENTS

    def convert(self, metadata: Any) -> tuple[Any, list[MetadataNote]]:
        value, size = self._entry(metadata)
        if isinstance(metadata, Mapping) and not isinstance(value, dict):
            value = {"not kept": value}  # Who reads it expects a dict.
        if size > METADATA_NOTICE_BYTES:
            self._notes[SIZE] = (
                f"The metadata has {_kib(size)}. It is stored several times with every checkpoint, and read by every "
                "list(): save what is large as a file of the checkpoint"
            )
        notes = [MetadataNote(key, line) for key, line in self._notes.items()]
        if self._unnamed:
            notes.append(
                MetadataNote("\0more", f"{self._unnamed} more values of the metadata are not kept, or kept as text")
            )
        return value, notes

    def _entry(self, value: Any) -> tuple[Any, int]:
        """The value of a key above which there are only dicts: it has the limits for itself."""
        elements = self._elements = max(min(METADATA_ELEMENTS, self._patience), 0)
        self._bytes = self._max_bytes
        depth = len(self._path)
        try:
            return self._value(value, outer=True)
        except _NotKept as error:
            del self._path[depth:]
            return self._not_kept(str(error))
        except RecursionError:
            del self._path[depth:]
            return self._not_kept("nested too deep")
        finally:
            self._patience -= elements - self._elements

    def _value(self, value: Any, *, outer: bool = False) -> tuple[Any, int]:
        """``value`` as JSON, and an upper bound of its size in bytes; ``outer``: there are only dicts above it.

        Raises
        ------
        _NotKept
            The entry that is being read is too large.
        """
        kind = type(value)
        if kind is str:
            size = len(_encode(value)) if len(value) < self._max_bytes else len(value)
            return value, self._count(size)
        if kind is float or kind is bool or value is None:
            return value, self._count(_SMALL)
        if kind is int and value.bit_length() <= _MAX_BITS:
            return value, self._count(value.bit_length() // 3 + 2)
        if id(value) in self._open:
            return self._not_kept("part of itself")
        if len(self._open) >= METADATA_DEPTH:
            return self._not_kept(f"nested more than {METADATA_DEPTH} deep")
        self._open.add(id(value))
        depth = len(self._path)
        try:
            if kind is dict:
                return self._mapping(value.copy(), outer)  # At once: another thread may change the original.
            if kind is list or kind is tuple:
                return self._list(value)
            return self._object(value, outer)
        except (_NotKept, RecursionError):
            raise
        except Exception:  # The user's objects may do anything; the checkpoint is worth more.
            del self._path[depth:]
            text = _repr(value)
            kept = repr(shorten(text, _SHOWN))
            self._note(f"is kept as text, since JSON has no value for its type, {type(value).__name__}: {kept}")
            return text, self._count(len(_encode(text)))
        finally:
            self._open.discard(id(value))

    def _object(self, value: Any, outer: bool) -> tuple[Any, int]:
        """What is none of JSON's own types; whatever else is raised means that there is no value for it."""
        if isinstance(value, (bytes, bytearray, memoryview)) and len(value) > self._max_bytes:
            self._count(len(value))
        for kinds, convert in _CONVERSIONS:
            if isinstance(value, kinds):
                return self._value(convert(value), outer=outer)
        if isinstance(value, Mapping):
            return self._mapping(value, outer)
        if isinstance(value, _LISTS):
            return self._list(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping({item.name: getattr(value, item.name) for item in dataclasses.fields(value)}, outer)
        return self._value(self._array(value))

    def _array(self, value: Any) -> Any:
        """What an array, a tensor or one number of theirs stands for: lists, or a number of Python.

        They are known by their shape or dtype: a class of the user's that has an ``item()`` alone is something else.
        """
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None and dtype is None:
            raise TypeError("It is no array")
        if shape is not None and math.prod(map(int, shape)) > self._elements:
            raise _NotKept(f"larger than {METADATA_ELEMENTS} elements")
        if getattr(dtype, "kind", "") == "M":
            value = value.astype(str)  # Of nanoseconds tolist() would make bare numbers.
        name = next(name for name in ("tolist", "item", "numpy") if callable(getattr(value, name, None)))
        found = getattr(value, name)()
        if type(found) is type(value):
            raise TypeError("It stands for itself alone")
        return found

    def _count(self, size: int) -> int:
        size += _BETWEEN
        self._bytes -= size
        if self._bytes < 0:
            raise _NotKept(f"larger than {_kib(self._max_bytes)}")
        return size

    def _take(self, count: int) -> None:
        if count > self._elements:
            raise _NotKept(f"larger than {METADATA_ELEMENTS} elements")
        self._elements -= count

    def _list(self, value: Any) -> tuple[list[Any], int]:
        count = len(value)
        self._take(count)
        # No more than it says it has: it may be of a class of the user's, or grow meanwhile.
        pairs = [self._value(item) for item in list(itertools.islice(value, count))]
        found, size = [item for item, _ in pairs], self._count(2) + sum(size for _, size in pairs)
        is_set = isinstance(value, Set) and not isinstance(value, _VIEWS)
        return (_sorted(found) if is_set else found), size

    def _mapping(self, value: Mapping[Any, Any], outer: bool) -> tuple[dict[str, Any], int]:
        count = len(value)
        self._take(count)
        found: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        again: Counter[str] = Counter()
        for key, item in list(itertools.islice(value.items(), count)):
            if outer:
                self._bytes = self._max_bytes
            text = self._key(key)
            name = text
            while name in found:
                again[text] += 1
                name = f"{text} ({again[text] + 1})"
            self._path.append(name)
            if again[text]:
                self._note(f"has its number because two keys are {shorten(text, _SHOWN)!r} as text")
            length = self._count(len(_encode(name))) if not outer else len(_encode(name)) + _BETWEEN
            found[name], size = self._entry(item) if outer else self._value(item)
            self._path.pop()
            sizes[name] = size + length
        if not outer:
            return found, self._count(2) + sum(sizes.values())
        total = 2 + _BETWEEN + sum(sizes.values())
        for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if total <= self._max_bytes:
                break
            self._path.append(name)
            found[name], size = self._not_kept(f"the largest part of more than {_kib(self._max_bytes)}")
            self._path.pop()
            total -= sizes[name] - size
        return found, total

    def _key(self, key: Any) -> str:
        """The text of a key: of numbers, booleans and None that which ``json.dumps`` writes."""
        if type(key) is str:
            return shorten(key, _MAX_TEXT)
        try:
            value, _ = self._value(key)
        except _NotKept:
            value = _repr(key)
        if isinstance(key, tuple) and isinstance(value, list):
            text = str(tuple(value))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        return shorten(text, _MAX_TEXT)

    # -- for people --------------------------------------------------------------------------------------------------

    def _not_kept(self, why: str) -> tuple[str, int]:
        self._note(f"is not kept: it is {why}. Save it as a file of the checkpoint")
        text = f"<not kept: {why}>"
        return text, len(text) + 2 + _BETWEEN

    def _note(self, what: str) -> None:
        path = ".".join(self._path)
        if path in self._notes:
            return
        if len(self._notes) >= _MAX_NOTES:
            self._unnamed += 1
            return
        self._notes[path] = f"The metadata {shorten(path, _SHOWN)!r} {what}" if path else f"The metadata {what}"


class NoteLog:
    """Says each note once, however many checkpoints are saved.

    Parameters
    ----------
    report : callable
        Gets lines for people.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._keys: set[str] = set()

    def say(self, notes: Iterable[MetadataNote]) -> None:
        """Say those that are new; of very many no more than the first."""
        for note in notes:
            if note.key in self._keys or len(self._keys) > _MAX_SAID:
                continue
            self._keys.add(note.key)
            more = len(self._keys) > _MAX_SAID
            self._report(note.line if not more else "More of the metadata is kept as text or not kept; no more is said")


# -- values ------------------------------------------------------------------------------------------------------------

#: Views of dicts are sets with an order of their own.
_VIEWS = (KeysView, ItemsView)
#: What becomes a list.
_LISTS = (Sequence, Set, ValuesView, collections.deque, array.array)


def _sorted(items: list[Any]) -> list[Any]:
    """In an order that is the same in every process."""
    try:
        if all(item == item for item in items):  # NaN is in no order.
            return sorted(items)
    except TypeError:
        pass
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def _integer(value: Any) -> Any:
    if getattr(getattr(value, "dtype", None), "kind", "") == "m":  # numpy counts its timedelta64 among the integers.
        return value.astype("m8[us]").tolist()
    found = operator.index(value)
    if found.bit_length() > _MAX_BITS:
        raise ValueError("too long to be written")
    return int.__pos__(found)


def _real(value: Any) -> Any:
    """A float, also for a Decimal or a Fraction: who keeps a measure wants to compare it. Text where a float is
    infinite and the number is not.
    """
    number = float.__pos__(float(value))
    return str(value) if math.isinf(number) and value != number else number


def _text_of_bytes(value: Any) -> str:
    return bytes(value).decode()


#: In this order: an Enum may be a str or an int as well, and a path or a number of the user's a sequence.
_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: value.value),
    (str, str.__str__),
    ((int, numbers.Integral), _integer),
    ((float, numbers.Real, decimal.Decimal), _real),
    ((datetime.date, datetime.time), lambda value: value.isoformat()),
    (datetime.timedelta, lambda value: value.total_seconds()),
    (os.PathLike, os.fsdecode),
    ((uuid.UUID, collections.UserString), str),
    ((bytes, bytearray, memoryview), _text_of_bytes),
    ((argparse.Namespace, types.SimpleNamespace), vars),
)


def _repr(value: Any) -> str:
    """The ``repr`` without addresses, bounded; something in its place where it fails."""
    try:
        text = str.__str__(repr(value))
    except Exception as error:
        text = f"<a {type(value).__name__}, whose repr() fails: {type(error).__name__}>"
    return shorten(_ADDRESS.sub("", text), _MAX_TEXT)


def _kib(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{-(-size >> 10)} KiB"

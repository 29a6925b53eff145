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

from .config import METADATA_DEPTH, METADATA_NOTICE_BYTES, Config
from .errors import shorten

#: Characters of a ``repr``, and of a key's text, that are kept.
_MAX_TEXT = 1000
#: Characters of a key, or of a text, that stand in a line for people.
_SHOWN = 80
#: Notes about one metadata, and about all of a task.
_MAX_NOTES, _MAX_SAID = 10, 50
#: So many values are read in all, so that nobody waits for long for what is not kept.
_PATIENCE = 1_000_000
#: Python reads and writes no longer integers as decimal text (``sys.int_info.default_max_str_digits``).
_MAX_BITS = 14_000
#: Upper bounds in bytes of JSON: a float, a bool or None; what stands between two values; and a lower one: an element.
_SMALL, _BETWEEN, _ELEMENT = 24, 2, 3
#: A text in place of a value has no fewer bytes.
_REPLACED = 64

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
    return _Conversion(config).convert(metadata)


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
        #: Bytes of JSON that the entry which is being read may still have, and values that may still be read in all.
        self._left, self._patience = self._max_bytes, _PATIENCE

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
        """The value of a key above which there are only dicts, and an upper bound of its size in bytes. It has the
        limit for itself.
        """
        self._left, depth = self._max_bytes, len(self._path)
        try:
            value = self._value(value, outer=True)
        except (_NotKept, RecursionError) as error:
            del self._path[depth:]
            self._left = self._max_bytes
            value = self._not_kept(str(error) if isinstance(error, _NotKept) else "nested too deep")
        return value, self._max_bytes - self._left

    def _value(self, value: Any, *, outer: bool = False) -> Any:
        """``value`` as JSON; ``outer``: there are only dicts above it.

        Raises
        ------
        _NotKept
            The entry that is being read is too large.
        """
        kind = type(value)
        if kind is str:
            self._count(len(_encode(value)) if len(value) < self._max_bytes else len(value))
        elif kind is float or kind is bool or value is None:
            self._count(_SMALL)
        elif kind is int and value.bit_length() <= _MAX_BITS:
            self._count(value.bit_length() // 3 + 2)
        elif id(value) in self._open:
            return self._not_kept("part of itself")
        elif len(self._open) >= METADATA_DEPTH:
            return self._not_kept(f"nested more than {METADATA_DEPTH} deep")
        else:
            return self._read(value, outer)
        return value

    def _read(self, value: Any, outer: bool) -> Any:
        """Ask an object of the user's, which may do anything; the checkpoint is worth more."""
        self._open.add(id(value))
        depth = len(self._path)
        try:
            return self._object(value, outer)
        except (_NotKept, RecursionError):
            raise
        except Exception:
            del self._path[depth:]
            text = _repr(value)
            kept = repr(shorten(text, _SHOWN))
            self._note(f"is kept as text, since JSON has no value for its type, {type(value).__name__}: {kept}")
            return self._value(text)
        finally:
            self._open.discard(id(value))

    def _object(self, value: Any, outer: bool) -> Any:
        """Whatever is raised but ``_NotKept`` means that there is no value for it."""
        if type(value) is dict:
            return self._mapping(value.copy(), outer)  # At once: another thread may change the original.
        if type(value) is list:
            return self._list(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            self._expect(len(value) // _ELEMENT)
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
        if shape is not None:
            self._expect(math.prod(map(int, shape)))
        if getattr(dtype, "kind", "") == "M":
            value = value.astype(str)  # Of nanoseconds tolist() would make bare numbers.
        name = next(name for name in ("tolist", "item", "numpy") if callable(getattr(value, name, None)))
        found = getattr(value, name)()
        if type(found) is type(value):
            raise TypeError("It stands for itself alone")
        return found

    def _count(self, size: int) -> None:
        self._left -= size + _BETWEEN
        self._patience -= 1
        if self._left < 0:
            raise _NotKept(f"larger than {_kib(self._max_bytes)}")
        if self._patience < 0:
            raise _NotKept(f"beyond the first {_PATIENCE} values")

    def _expect(self, count: int) -> None:
        """See that there may be room for so many elements, before any is read."""
        if count * _ELEMENT > self._left:
            raise _NotKept(f"larger than {_kib(self._max_bytes)}")

    def _list(self, value: Any) -> list[Any]:
        count = len(value)
        self._expect(count)
        # No more than it says it has: it may be of a class of the user's, or grow meanwhile.
        found = [self._value(item) for item in list(itertools.islice(value, count))]
        self._count(2)
        is_set = isinstance(value, Set) and not isinstance(value, _VIEWS)
        return _sorted(found) if is_set else found

    def _mapping(self, value: Mapping[Any, Any], outer: bool) -> dict[str, Any]:
        count = len(value)
        self._expect(count)
        found: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        again: Counter[str] = Counter()
        for key, item in list(itertools.islice(value.items(), count)):
            if outer:
                self._left = self._max_bytes
            text = name = self._key(key)
            while name in found:
                again[text] += 1
                name = f"{text} ({again[text] + 1})"
            self._path.append(name)
            if again[text]:
                self._note(f"has its number because two keys are {shorten(text, _SHOWN)!r} as text")
            if outer:
                found[name], sizes[name] = self._entry(item)
            else:
                self._count(len(_encode(name)))
                found[name] = self._value(item)
            self._path.pop()
        if outer:
            self._left = self._max_bytes - sum(size + len(_encode(name)) + _BETWEEN for name, size in sizes.items())
            self._drop_the_largest(found, sizes)
        self._count(2)
        return found

    def _drop_the_largest(self, found: dict[str, Any], sizes: Mapping[str, int]) -> None:
        """Until all together is small enough, or what is left is so small that dropping it would make no room."""
        for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if self._left >= 2 + _BETWEEN or sizes[name] <= _REPLACED:
                break
            self._left += sizes[name]
            self._path.append(name)
            found[name] = self._not_kept(f"the largest part of more than {_kib(self._max_bytes)}")
            self._path.pop()

    def _key(self, key: Any) -> str:
        """The text of a key: of numbers, booleans and None that which ``json.dumps`` writes."""
        if type(key) is str:
            return shorten(key, _MAX_TEXT)
        try:
            value = self._value(key)
        except _NotKept:
            value = _repr(key)
        if isinstance(key, tuple) and isinstance(value, list):
            text = str(tuple(value))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        return shorten(text, _MAX_TEXT)

    # -- for people --------------------------------------------------------------------------------------------------

    def _not_kept(self, why: str) -> str:
        self._note(f"is not kept: it is {why}. Save it as a file of the checkpoint")
        text = f"<not kept: {why}>"
        self._left -= len(text) + 2 + _BETWEEN
        return text

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


def named(metadata: Any, name: str) -> Any:
    """What metadata has under a name, or under ``outer.inner`` in nested dicts; None: nothing."""
    if isinstance(metadata, Mapping) and name in metadata:
        return metadata[name]
    for part in name.split("."):
        metadata = metadata.get(part) if isinstance(metadata, Mapping) else None
    return metadata

"""The safetensors format: eight bytes with the header's length, the header in JSON, the tensors' bytes without holes.

It is described at https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from ..errors import IntegrityError, shorten

#: Data begins at a multiple of it.
ALIGNMENT = 64
#: The library reads no longer headers.
MAX_HEADER_BYTES = 100_000_000
#: No tensor's name: what readers of the format expect under it is text.
METADATA = "__metadata__"
#: A name of bytes that belong to nobody, so that the tensor after them is aligned.
PADDING = "__padding__"
_LENGTH = 8

#: The format's types: bytes of an element, and what torch and numpy call them. Other types are kept as bytes (``U8``);
#: also some that only new versions of its library know, because the others would not open the file.
TYPES: dict[str, tuple[int, str, str]] = {
    "F64": (8, "float64", "<f8"), "F32": (4, "float32", "<f4"), "F16": (2, "float16", "<f2"),
    "BF16": (2, "bfloat16", ""),
    "I64": (8, "int64", "<i8"), "I32": (4, "int32", "<i4"), "I16": (2, "int16", "<i2"), "I8": (1, "int8", "|i1"),
    "U64": (8, "uint64", "<u8"), "U32": (4, "uint32", "<u4"), "U16": (2, "uint16", "<u2"), "U8": (1, "uint8", "|u1"),
    "BOOL": (1, "bool", "|b1"), "F8_E4M3": (1, "float8_e4m3fn", ""), "F8_E5M2": (1, "float8_e5m2", ""),
}  # fmt: skip

_SIZES = {"C64": 8, **{tag: size for tag, (size, _, _) in TYPES.items()}}
_FIELDS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """One tensor of the header; ``begin`` and ``end`` are bytes from the start of the file."""

    tag: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header(entries: Iterable[tuple[str, str, Iterable[int], int, int]], metadata: dict[str, str]) -> bytes:
    """The first bytes of a file, up to its data.

    Parameters
    ----------
    entries : iterable
        Name, type, shape, and where its bytes begin and end in the data; in their order in the file, without holes.
    metadata : dict
        For other readers.
    """
    parts = [f'"{METADATA}":{json.dumps(metadata, separators=(",", ":"))}']
    parts += [
        f'{quoted(name)}:{{"dtype":"{tag}","shape":{list(shape)},"data_offsets":[{begin},{end}]}}'
        for name, tag, shape, begin, end in entries
    ]
    text = f"{{{','.join(parts)}}}".encode()
    text += b" " * (-(_LENGTH + len(text)) % ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def read_header(fd: int, where: str) -> dict[str, Entry]:
    """The tensors of a file, by their names, in the order of their bytes.

    Raises
    ------
    IntegrityError
        The file is not in this format: it is cut off, tensors overlap, there are holes...
    """
    size = os.fstat(fd).st_size
    length = int.from_bytes(os.pread(fd, _LENGTH, 0), "little")
    if size < _LENGTH or length > min(size - _LENGTH, MAX_HEADER_BYTES):
        raise _damaged(where, f"it has {size} bytes, and its header would have {length}")
    try:
        found = json.loads(os.pread(fd, length, _LENGTH).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is no JSON: {shorten(str(error), 200)}") from error
    if not isinstance(found, dict):
        raise _damaged(where, "its header is no object")
    found.pop(METADATA, None)
    start = _LENGTH + length
    entries = {name: _entry(name, entry, start, where) for name, entry in found.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != position:
            raise _damaged(where, f"the bytes of {shorten(name, 100)!r} do not follow those of the tensor before it")
        position = entry.end
    if position != size:
        raise _damaged(where, f"its tensors end at byte {position}, and it has {size}")
    return entries


def _entry(name: str, entry: Any, start: int, where: str) -> Entry:
    fine = isinstance(entry, dict) and entry.keys() == _FIELDS
    if fine:
        tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        fine = isinstance(tag, str) and are_sizes(shape) and are_sizes(offsets) and len(offsets) == 2
    if not fine or (tag not in _SIZES and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,30}", tag)):
        raise _damaged(where, f"its header says nothing sensible of {shorten(name, 100)!r}")
    begin, end = offsets
    if begin > end or (tag in _SIZES and product(shape) * _SIZES[tag] != end - begin):
        raise _damaged(where, f"{shorten(name, 100)!r} has another shape than it has bytes")
    return Entry(tag, tuple(shape), start + begin, start + end)


def product(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def are_sizes(values: Any) -> bool:
    """Whether it is what a shape may be."""
    return (
        isinstance(values, list)
        and len(values) <= 1000
        and all(type(one) is int and 0 <= one < 1 << 63 for one in values)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _damaged(where: str, why: str) -> IntegrityError:
    return IntegrityError(f"The file of tensors is damaged: {why}", where=where, hint="Load another checkpoint")

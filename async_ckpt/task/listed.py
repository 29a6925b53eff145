"""What ``list()`` returns: a list, and a table where a notebook shows it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from ..layout import newest
from ..metadata import named
from ..system.printable import visible
from .progress import format_bytes
from .reference import CheckpointInfo

#: So many rows, columns of metadata, and characters in one place.
_ROWS, _COLUMNS, _TEXT = 100, 8, 120


class CheckpointList(list[CheckpointInfo]):
    """Checkpoints. Kept as an artifact it is a plain list, which needs nothing of this package.

    Parameters
    ----------
    first : iterable of str
        Names in the metadata that a table shows first: those by which these were chosen.
    """

    def __init__(self, found: Iterable[CheckpointInfo] = (), first: Iterable[str] = ()) -> None:
        super().__init__(found)
        self._first = tuple(first)

    def columns(self) -> list[str]:
        """Which names of the metadata a table shows: those by which these were chosen, and some more."""
        first = [name for name in self._first if any(named(one.get("metadata"), name) is not None for one in self)]
        return list(dict.fromkeys([*first, *columns_of(self)]))[:_COLUMNS]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _repr_html_(self) -> str:
        columns = self.columns()
        head = "".join(f"<th>{html.escape(visible(text, _TEXT))}</th>" for text in (*HEADINGS, *columns))
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row(one, columns))}</tr>" for one in self[:_ROWS]
        )
        rest = f"<p>and {len(self) - _ROWS} more</p>" if len(self) > _ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


HEADINGS = ("name", "version", "task", "attempt", "state", "size", "created")


def columns_of(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names under which metadata has single values, in the order in which they come up; not all of them."""
    names: dict[str, None] = {}
    for one in found:
        metadata = one.get("metadata")
        if isinstance(metadata, Mapping):
            names.update(dict.fromkeys(str(name) for name, value in metadata.items() if _is_single(value)))
        if len(names) >= _COLUMNS:
            break
    return list(names)[:_COLUMNS]


def row(found: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """One line of a table: the fields of ``HEADINGS``, and what the metadata has under some names."""
    # Others may have written anything but the key.
    size = found.get("size")
    values = {name: named(found.get("metadata"), name) for name in columns}
    fields = [
        found.get("name"), found.get("version_id"), found.get("pathspec"), found.get("attempt"), found.get("state"),
        format_bytes(size) if isinstance(size, (int, float)) else None, newest.shown(found),
        *(value if _is_single(value) else None for value in values.values()),
    ]  # fmt: skip
    return [_text(value) for value in fields]


def _is_single(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return visible(f"{value:.6g}" if isinstance(value, float) else str(value), _TEXT)

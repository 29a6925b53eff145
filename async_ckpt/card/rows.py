"""What the card shows of each checkpoint, and its log in the spool, ``card.jsonl``.

A line of the log is a JSON object with the ``id`` of a checkpoint and what has become known of it: some of ``COLUMNS``,
or ``metrics``. Later lines add to earlier ones. The agent appends them as things happen; whoever writes the card reads
on from where it was. Nothing but the card depends on it: a line that is torn, or was never written, is a gap there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..config import CARD_METRICS, CARD_TEXT
from ..spool.journal import COMMITTED
from ..system.printable import visible

NAME = "card.jsonl"

#: ``saved_at`` is in seconds since 1970; ``began_s``, ``uploaded_s`` and ``durable_s`` are seconds from then until it
#: was first sent, all of it was sent, and it was committed. ``sent`` and ``copied`` are bytes, of all tries.
COLUMNS = (
    "id", "attempt", "name", "version", "size", "state", "saved_at", "blocked_s", "began_s", "uploaded_s", "durable_s",
    "sent", "copied", "why",
)  # fmt: skip

#: One checkpoint, by these names, and ``metrics``.
Row = dict[str, Any]


def metrics_of(metadata: Any) -> dict[str, float]:
    """The numbers in the metadata of a checkpoint by their names; those in nested dicts are called ``outer.inner``. NaN
    and Infinity are left out, as they cannot be drawn.
    """
    found: dict[str, float] = {}
    _collect(metadata, "", found)
    return found


def _collect(value: Any, name: str, found: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, f"{name}.{key}" if name else str(key), found)
    elif type(value) in (int, float) and len(found) < CARD_METRICS:
        with contextlib.suppress(OverflowError):  # An integer that no float can be.
            number = float(value)
            if math.isfinite(number):
                found[visible(name, CARD_TEXT)] = number


class Sum(NamedTuple):
    """What an attempt has saved.

    Parameters
    ----------
    saves, stored : int
        Checkpoints, and how many of them are in the store.
    size, sent : int
        Bytes that were saved, and those that were sent.
    blocked_s : float
        Seconds for which whoever trains was held up by saves.
    last : Row or None
        The newest that is in the store.
    """

    saves: int
    stored: int
    size: int
    sent: int
    blocked_s: float
    last: Row | None


def sum_of(rows: Iterable[Row], attempt: int) -> Sum:
    """What an attempt has saved, by its rows."""
    mine = [row for row in rows if row.get("attempt") == attempt]
    stored = [row for row in mine if row.get("state") == COMMITTED]

    def total(name: str) -> Any:
        return sum(row.get(name) or 0 for row in mine)

    last = max(stored, key=lambda row: row["version"], default=None)
    return Sum(len(mine), len(stored), total("size"), total("sent"), total("blocked_s"), last)


class Log:
    """The agent's end: it appends."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, NAME)

    def append(self, rows: Iterable[Row]) -> None:
        """Write down what has become known.

        Raises
        ------
        OSError
            The disk is full, or gone.
        """
        # A line that was torn, when an agent died or the disk was full, ends with the newline before each line.
        lines = "".join(f"\n{json.dumps(row, separators=(',', ':'))}" for row in rows)
        with open(self._path, "ab") as file:
            file.write(f"{lines}\n".encode())


class Rows:
    """The other end: all that is known, by id.

    Parameters
    ----------
    folder : str
        The spool.
    """

    def __init__(self, folder: str) -> None:
        self._path, self._inode, self._offset = os.path.join(folder, NAME), 0, 0
        self.all: dict[str, Row] = {}

    def read_on(self) -> set[str]:
        """Take in what was appended since the last call. Returns the ids of what has changed.

        Raises
        ------
        OSError
            It cannot be read. A log that is not there is empty.
        """
        try:
            file = open(self._path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return set()
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0  # Something has removed the one before.
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        return {identity for line in data[:end].splitlines() if (identity := self._take(line))}

    def _take(self, line: bytes) -> str:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                self.add(row)
                return str(row["id"])
        return ""

    def add(self, row: Row) -> None:
        """Take in what is known of one checkpoint."""
        self.all.setdefault(row["id"], {}).update(row)

    def metrics(self) -> list[str]:
        """The names of all numbers in metadata, in the order in which they came up; bounded."""
        names: dict[str, None] = {}
        for row in self.all.values():
            names.update(dict.fromkeys(row.get("metrics", ())))
        return list(names)[:CARD_METRICS]


def table(rows: Iterable[Row], metrics: list[str]) -> dict[str, Any]:
    """Rows as the page takes them: ``columns``, and a list of values for each row. What is not known to be saved, as
    that line is missing, is left out.
    """
    return {
        "columns": [*COLUMNS, *(f"metric:{name}" for name in metrics)],
        "metrics": metrics,
        "rows": [
            [*(row.get(column) for column in COLUMNS), *(row.get("metrics", {}).get(name) for name in metrics)]
            for row in rows
            if row.get("name") is not None and row.get("saved_at") is not None
        ],
    }


def rows_of(found: Mapping[str, Any]) -> list[Row]:
    """The rows of a ``table``.

    Raises
    ------
    KeyError, TypeError, AttributeError
        It is none.
    """
    columns, rows = found["columns"], []
    for values in found["rows"]:
        row: Row = {}
        for column, value in zip(columns, values, strict=False):
            if column.startswith("metric:"):
                row.setdefault("metrics", {})[column.removeprefix("metric:")] = value
            else:
                row[column] = value
        rows.append(row)
    return rows

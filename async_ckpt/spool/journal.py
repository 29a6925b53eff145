"""The journal: what became of each admitted checkpoint.

Format. A text file; the first line is ``async_ckpt journal 1``. Every further line is a record::

    <CRC-32 of the rest of the line, 8 hex digits> <JSON object>\\n

with ``id`` (the checkpoint's name in ``ready/``) and one of

- ``state``: ``UPLOADED`` (all its objects are in the store), ``COMMITTED`` (with ``reference``), ``FAILED`` (with
  ``why``);
- ``file``: a hard-linked file whose bytes are in the store (with ``crc32``), so that its lease could be let go.

Who writes: the agent that holds the spool's lock, by appending whole lines. Anybody may read at any time.

Replay. A record counts if its line is complete and its CRC is right. At the first one that is not (a torn tail after a
crash or a full disk), reading stops; the writer cuts the file there and goes on. Nothing is lost by that: admission is
a file in ``ready/``, every step after it may be repeated, and the journal only says which steps need not be.

A file with another first line is not ours to change: it is set aside under ``journal.foreign-<n>``, and a warning
says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import SpoolError, os_hint, os_reason
from ..files import write_atomically

HEADER = b"async_ckpt journal 1\n"

ADMITTED, UPLOADING, UPLOADED, COMMITTED, FAILED = "ADMITTED", "UPLOADING", "UPLOADED", "COMMITTED", "FAILED"
#: States that end a checkpoint's way.
FINAL = (COMMITTED, FAILED)


@dataclass
class Progress:
    """What the journal knows of one checkpoint."""

    state: str = ADMITTED
    why: str = ""
    files: dict[str, list[int]] = field(default_factory=dict)
    reference: dict[str, Any] | None = None


class Journal:
    """The agent's end of the journal; see the module's docstring.

    Parameters
    ----------
    path : str
        The file; made if it is not there.

    Raises
    ------
    SpoolError
        It cannot be read or written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._fd = -1
        try:
            self.progress = self._open()
        except OSError as error:
            raise SpoolError(
                f"The journal cannot be opened: {os_reason(error)}", where=path, hint=os_hint(error)
            ) from error

    def _open(self) -> dict[str, Progress]:
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        if data and not data.startswith(HEADER) and not HEADER.startswith(data):
            aside = _set_aside(self.path)
            self.warnings.append(
                f"The journal {self.path} was not written by this version of async_ckpt; it was set aside "
                f"as {aside}, and what is in the spool is uploaded again"
            )
            data = b""
        records, good = parse(data)
        if good < len(data) and len(data) > len(HEADER):
            self.warnings.append(
                f"The journal {self.path} ended in a torn record: its last {len(data) - good} bytes were cut off"
            )
        progress = replay(records)
        self._compact(progress)
        return progress

    def _compact(self, progress: dict[str, Progress]) -> None:
        """Rewrite what replay made of it, whole and atomically: also cuts a torn tail."""
        lines = [HEADER]
        for identity, item in progress.items():
            lines += [encode({"id": identity, "file": path, "crc32": crc}) for path, crc in item.files.items()]
            record: dict[str, Any] = {"id": identity, "state": item.state, "why": item.why}
            if item.reference is not None:
                record["reference"] = item.reference
            lines.append(encode(record))
        write_atomically(self.path, b"".join(lines))
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record, or none of it.

        Raises
        ------
        SpoolError
            The disk is full or broken; the file ends where it ended before.
        """
        line = encode(record)
        end = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, end)
            raise SpoolError(
                f"The journal cannot be written: {os_reason(error)}", where=self.path, hint=os_hint(error)
            ) from error
        # References are for readers of the file; here they would only grow with the history.
        _apply(self.progress, {**record, "reference": None})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str) -> dict[str, Progress]:
    """What the journal at ``path`` says now, for those who do not write it; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            records, _ = parse(file.read())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SpoolError(f"The journal cannot be read: {os_reason(error)}", where=path, hint=os_hint(error)) from error
    return replay(records)


def encode(record: dict[str, Any]) -> bytes:
    """One line."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """All records up to the first bad one, and the offset in bytes where the good part ends."""
    if not data.startswith(HEADER):
        return [], 0
    records: list[dict[str, Any]] = []
    good = len(HEADER)
    for line in _complete_lines(data, good):
        try:
            crc, text = line[:8], line[9:-1]
            if crc != b"%08x" % zlib.crc32(text) or line[8:9] != b" ":
                break
            record = json.loads(text)
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                break
        except ValueError:
            break
        records.append(record)
        good += len(line)
    return records, good


def _complete_lines(data: bytes, start: int) -> Iterator[bytes]:
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start : end + 1]
        start = end + 1


def replay(records: list[dict[str, Any]]) -> dict[str, Progress]:
    """Fold records into what is known of each checkpoint, in order of first mention."""
    progress: dict[str, Progress] = {}
    for record in records:
        _apply(progress, record)
    return progress


def _apply(progress: dict[str, Progress], record: dict[str, Any]) -> None:
    item = progress.setdefault(record["id"], Progress())
    if "file" in record:
        item.files[record["file"]] = record["crc32"]
        return
    state = record.get("state")
    if isinstance(state, str):
        item.state, item.why = state, str(record.get("why") or "")
        item.reference = record.get("reference", item.reference)
    if item.state in (UPLOADED, *FINAL):
        item.files = {}


def _set_aside(path: str) -> str:
    number = 0
    while os.path.exists(aside := f"{path}.foreign-{number}"):
        number += 1
    os.rename(path, aside)
    return aside

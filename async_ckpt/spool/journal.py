"""The journal: what became of each admitted checkpoint.

Format. A text file; the first line is ``async_ckpt journal 1``. Every further line is::

    <CRC-32 of the rest of the line, 8 hex digits> <JSON object>\\n

with ``id`` (the checkpoint's name in ``ready/``) and one of

- ``state``: ``UPLOADED`` (all its objects are in the store), ``COMMITTED`` (with ``reference``), ``FAILED`` (with
  ``why``), ``SUPERSEDED`` (with ``why``: dropped for newer ones by the user's choice), ``REMOVED`` (it was
  committed, and the task's rules have removed it from the store);
- ``file``: a file whose bytes are in the store (with ``crc32``, and ``digests`` and ``etag`` where they are known), so
  that its lease could be let go; ``""`` is the tar.
  Where the same file may be saved again unchanged, ``inode`` says which it is (a ``Fingerprint``, as a list). Void once
  the checkpoint is uploaded or has failed, but for the ``inode`` of one that is committed;
- ``parts``: a file whose multipart upload was begun (with ``upload``, the store's id, and ``part_bytes``), and
  ``part``: its part of that number is in the store (with ``of``, the file, and the same as ``file``). Void once the
  file, or the checkpoint, is uploaded or has failed;
- ``tries``: a process takes it in hand. The number says how often in a row that was (this time included) without a word
  of how it ended: all processes before this one have died. 0: it was put down. Of one that is uploaded: so many
  uploaders have died in a row with its commit in hand. Void with any of the above;
- ``stored``: the key of a file of a committed checkpoint that may be saved again (with ``inode``, and the same as
  ``file``): what the lines above come to. Written when the journal is compacted.

The uploader speaks in these lines itself: it says which file or part is stored in the words in which the agent writes
it down (``is_step``), and whoever tries again is told by the lines as they stand (``steps``).

Who writes: the agent that holds the spool's lock, by appending whole lines. Anybody may read at any time.

Replay. A line counts if it is complete and its CRC is right. At the first one that is not (a torn tail after a
crash or a full disk), reading stops; the writer cuts the file there and goes on. Nothing is lost by that: admission is
a file in ``ready/``, every step after it may be repeated, and the journal only says which steps need not be.

Compaction. A new agent writes the file anew, without what is void, and without the commits of earlier attempts but the
newest.

A file with another first line is not ours to change: it is set aside under ``journal.foreign-<random>``, and a warning
says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from .. import layout
from ..errors import SpoolError
from ..manifest import dump
from ..stores.base import Multipart, Stored
from ..system.files import write_atomically
from .directories import spool_errors
from .unchanged import Fingerprint, StoredFile, StoredFiles

HEADER = b"async_ckpt journal 1\n"

ADMITTED, UPLOADING, UPLOADED, COMMITTED, FAILED = "ADMITTED", "UPLOADING", "UPLOADED", "COMMITTED", "FAILED"
SUPERSEDED, REMOVED = "SUPERSEDED", "REMOVED"
#: States in which nothing more is done for a checkpoint, and those of them in which nobody needs its snapshot any more.
FINAL = (COMMITTED, SUPERSEDED, REMOVED, FAILED)
RELEASED = (COMMITTED, SUPERSEDED, REMOVED)

#: Most of a long journal: the line of a commit, as it is written here. Its reference is read when it is asked for.
_COMMIT = re.compile(rb'\{"id":"([^"\\]+)","state":"COMMITTED",(?:"why":"",)?"reference":(\{.*\})\}')

#: The tar's place among the paths of a checkpoint's files.
TAR = ""

#: What stands in one line.
Line = dict[str, Any]

#: The fields of the lines that an upload makes, and those of them that may be missing.
_STEPS = ({"id", "file", "crc32"}, {"id", "parts", "upload", "part_bytes"}, {"id", "part", "of", "crc32"})
_MAY_BE_MISSING = {"digests", "etag"}


def stored_fields(stored: Stored) -> Line:
    """What is known of stored content, as fields of a line."""
    return {name: value for name, value in stored._asdict().items() if value or name == "crc32"}


def stored_in(line: Line) -> Stored:
    """What a line says of stored content."""
    return Stored(line["crc32"], tuple(line.get("digests", ())), line.get("etag", ""))


def file_stored(path: str, stored: Stored) -> Line:
    """The line of a file whose bytes are in the store, without the checkpoint's ``id``."""
    return {"file": path, **stored_fields(stored)}


def parts_begun(path: str, upload: str, part_bytes: int) -> Line:
    """The line of a multipart upload that was begun, without the checkpoint's ``id``."""
    return {"parts": path, "upload": upload, "part_bytes": part_bytes}


def part_stored(path: str, number: int, stored: Stored) -> Line:
    """The line of a part that is in the store, without the checkpoint's ``id``."""
    return {"part": number, "of": path, **stored_fields(stored)}


def is_step(line: Line) -> bool:
    """Whether this has the fields of one of those three lines."""
    return any(line.keys() - _MAY_BE_MISSING == fields for fields in _STEPS)


def steps(identity: str, item: CheckpointState) -> Iterator[Line]:
    """What an unfinished upload has brought into the store so far, as lines."""
    for path, stored in item.files.items():
        inode = {"inode": item.fingerprints[path]} if path in item.fingerprints else {}
        yield {"id": identity, **file_stored(path, stored), **inode}
    for path, multipart in item.parts.items():
        yield {"id": identity, **parts_begun(path, multipart.upload, multipart.part_bytes)}
        for number, part in multipart.parts.items():
            yield {"id": identity, **part_stored(path, number, part)}


@dataclass
class CheckpointState:
    """What the journal knows of one checkpoint.

    Parameters
    ----------
    files : dict
        Files whose bytes are in the store: path → what is known of them.
    fingerprints : dict
        What some of them are on this disk, by path.
    parts : dict
        Multipart uploads that were begun: path → what is known.
    commit : bytes or None
        The JSON of its reference, once it is committed.
    tries : int
        So often whoever had it in hand has died, if nobody has it now.
    uploaded : bool
        All its objects are in the store, whatever became of its commit: they must never be sent again, as nobody guards
        the snapshot any more.
    """

    state: str = ADMITTED
    why: str = ""
    uploaded: bool = False
    tries: int = 0
    files: dict[str, Stored] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    parts: dict[str, Multipart] = field(default_factory=dict)
    commit: bytes | None = None

    @property
    def reference(self) -> dict[str, Any] | None:
        """The reference of a committed checkpoint; parsed each time."""
        return json.loads(self.commit) if self.commit is not None else None


class Known:
    """What the lines of a journal come to: ``checkpoints`` by id, in order of first mention, and ``stored``."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, CheckpointState] = {}
        self.stored = StoredFiles()

    def apply(self, line: Line) -> None:
        """Take in the next line."""
        if "stored" in line:
            self.stored.add(Fingerprint(*line["inode"]), StoredFile(line["stored"], stored_in(line)))
            return
        item = self.checkpoints.setdefault(line["id"], CheckpointState())
        item.tries = line.get("tries", 0)
        if "file" in line:
            path = line["file"]
            item.files[path] = stored_in(line)
            item.parts.pop(path, None)
            item.fingerprints.pop(path, None)
            if "inode" in line:
                item.fingerprints[path] = Fingerprint(*line["inode"])
        elif "parts" in line:
            item.parts[line["parts"]] = Multipart(line["upload"], line["part_bytes"])
        elif "part" in line and line["of"] in item.parts:
            item.parts[line["of"]].parts[line["part"]] = stored_in(line)
        elif isinstance(line.get("state"), str):
            if reference := line.get("reference"):
                item.commit = reference if isinstance(reference, bytes) else dump(reference)
            self._enter(item, line["state"], str(line.get("why") or ""))

    def _enter(self, item: CheckpointState, state: str, why: str) -> None:
        item.state, item.why = state, why
        if state == COMMITTED and item.fingerprints and (reference := item.reference):
            for path, fingerprint in item.fingerprints.items():
                self.stored.add(fingerprint, StoredFile(f"{reference['key']}/{path}", item.files[path]))
        item.uploaded = item.uploaded or state in (UPLOADED, COMMITTED)
        if state == UPLOADED:  # What the commit will want to know.
            item.files = {path: item.files[path] for path in item.fingerprints}
            item.parts = {}
        elif state in FINAL:
            item.commit = item.commit if state == COMMITTED else None
            item.files, item.fingerprints, item.parts = {}, {}, {}


class Journal:
    """The agent's end of the journal; see the module's docstring.

    Parameters
    ----------
    path : str
        The file; made if it is not there.
    attempt : int
        The one that runs; of earlier ones only the newest commit is kept,
    keep : container of str
        and what is known of these ids: whoever finds their records again must know that they are in the store.
    on_error : callable
        Gets a line when ``note`` cannot write.

    Raises
    ------
    SpoolError
        It cannot be read or written.
    """

    def __init__(
        self, path: str, attempt: int = 0, keep: Container[str] = (), on_error: Callable[[str], None] = lambda why: None
    ) -> None:
        self.path, self._on_error = path, on_error
        #: What a full disk has not taken yet.
        self._unwritten: deque[Line] = deque()
        self.warnings: list[str] = []
        self._fd = -1
        with spool_errors("The journal cannot be opened", path):
            self._known = self._open(attempt, keep)
        self.checkpoints, self.stored = self._known.checkpoints, self._known.stored

    def of(self, identity: str) -> CheckpointState:
        """What is known of one checkpoint."""
        return self.checkpoints.get(identity) or CheckpointState()

    def _open(self, attempt: int, keep: Container[str]) -> Known:
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        if data and not data.startswith(HEADER) and not HEADER.startswith(data):
            aside = f"{self.path}.foreign-{secrets.token_hex(4)}"
            os.rename(self.path, aside)
            self.warnings.append(
                f"The journal {self.path} was not written by this version of async_ckpt; it was set aside "
                f"as {aside}, and what is in the spool is uploaded again"
            )
            data = b""
        known = Known()
        good = replay(data, known)
        if good < len(data) and len(data) > len(HEADER):
            self.warnings.append(
                f"The journal {self.path} ended in a torn line: its last {len(data) - good} bytes were cut off"
            )
        _drop_commits_before(attempt, known.checkpoints, keep)
        try:
            write_atomically(self.path, HEADER + b"".join(_lines(known)))
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not good:
                raise
            # The disk is full, and what is uploaded gives it back: it goes on as it is.
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._fd, good)
        for item in known.checkpoints.values():
            item.commit = None  # References are for readers of the file; here they would only grow with the history.
        return known

    def note(self, line: Line) -> bool:
        """Add a line; on a full disk it is kept, in order, until ``catch_up``. Returns whether all is written."""
        self._unwritten.append(line)
        return self.catch_up()

    def catch_up(self) -> bool:
        """Write what a full disk has not taken. Returns whether all is written."""
        try:
            while self._unwritten:
                self.append(self._unwritten[0])
                self._unwritten.popleft()
        except SpoolError as error:
            self._on_error(str(error))
        return not self._unwritten

    def append(self, line: Line) -> None:
        """Add one line, or none of it.

        Raises
        ------
        SpoolError
            The disk is full or broken; the file ends where it ended before.
        """
        data = encode(line)
        with spool_errors("The journal cannot be written", self.path):
            end = os.fstat(self._fd).st_size
            try:
                if os.write(self._fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, end)
                raise
        self._known.apply(line)
        self.checkpoints[line["id"]].commit = None

    def restore(self) -> bool:
        """Write the file anew if something has removed it; it can still be read here. Returns whether it was missing.

        Raises
        ------
        OSError
            It cannot be written.
        """
        status = os.fstat(self._fd)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == status.st_ino:
                return False
        write_atomically(self.path, os.pread(self._fd, status.st_size, 0))
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fd
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Reader:
    """For those who do not write the journal: each look reads only what is new.

    Parameters
    ----------
    path : str
        The file; it need not be there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._start_anew()

    def _start_anew(self) -> None:
        self._known, self._inode, self._end, self._last = Known(), -1, 0, b""

    def look(self) -> dict[str, CheckpointState]:
        """What the journal says now; where it is missing, what it said last.

        Raises
        ------
        SpoolError
            It cannot be read.
        """
        with spool_errors("The journal cannot be read", self._path):
            try:
                with open(self._path, "rb") as file:
                    inode = os.fstat(file.fileno()).st_ino
                    # An agent that was started since has written it anew.
                    file.seek(self._end - len(self._last))
                    if inode != self._inode or file.read(len(self._last)) != self._last:
                        self._start_anew()
                        self._inode = inode
                    file.seek(self._end)
                    data = file.read()
            except FileNotFoundError:  # Removed with its spool, or its agent is about to write it anew.
                return self._known.checkpoints
        good = replay(data, self._known, begun=self._end > 0)
        if good:
            self._end += good
            self._last = data[data.rfind(b"\n", 0, good - 1) + 1 : good]
        return self._known.checkpoints


def read(path: str) -> dict[str, CheckpointState]:
    """What the journal at ``path`` says now, for those who look once; see ``Reader``."""
    return Reader(path).look()


def encode(line: Line) -> bytes:
    """A line as it stands in the file."""
    return _with_crc(dump(line))


def _with_crc(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def replay(data: bytes, known: Known, *, begun: bool = False) -> int:
    """Fold the lines in ``data`` into ``known``, up to the first bad one.

    ``begun``: it goes on where earlier data ended, without a first line. Returns the offset in bytes where the good
    part ends.
    """
    if not begun and not data.startswith(HEADER):
        return 0
    start = good = 0 if begun else len(HEADER)
    while (end := data.find(b"\n", start)) >= 0:
        text = data[start + 9 : end]
        if data[start : start + 9] != b"%08x " % zlib.crc32(text):
            break
        try:
            known.apply(_parse(text))
        except (ValueError, KeyError, TypeError):
            break
        start = good = end + 1
    return good


def _parse(text: bytes) -> Line:
    if commit := _COMMIT.fullmatch(text):
        return {"id": commit[1].decode(), "state": COMMITTED, "reference": commit[2]}
    line = json.loads(text)
    if not isinstance(line, dict) or not isinstance(line.get("id"), str):
        raise ValueError("no line of a journal")
    return line


def _lines(known: Known) -> Iterator[bytes]:
    """What replay made of a journal, as a journal."""
    for inode, file in known.stored:
        yield encode({"id": "", "stored": file.key, "inode": inode, **stored_fields(file.stored)})
    for identity, item in known.checkpoints.items():
        if item.state == COMMITTED and item.commit is not None:
            text = b'{"id":%s,"state":"COMMITTED","reference":%s}' % (json.dumps(identity).encode(), item.commit)
            yield _with_crc(text)
            continue
        yield from map(encode, steps(identity, item))
        if item.uploaded and item.state == FAILED:
            yield encode({"id": identity, "state": UPLOADED})
        yield encode({"id": identity, "state": item.state, "why": item.why})
        if item.tries:
            yield encode({"id": identity, "tries": item.tries})


def is_id(identity: str) -> bool:
    """Whether this can be a checkpoint's id."""
    try:
        is_name = len(os.fsencode(identity)) < 250 and not {"/", "\0"} & set(identity)
    except UnicodeEncodeError:
        return False
    return is_name and order(identity) != (-1, -1)


def order(identity: str) -> tuple[int, int]:
    """(attempt, version) of a checkpoint, by its id; (-1, -1) of what is none."""
    parts = identity.split(".")
    return (int(parts[0]), int(parts[-1])) if parts[0].isdecimal() and parts[-1].isdecimal() else (-1, -1)


def _drop_commits_before(attempt: int, checkpoints: dict[str, CheckpointState], keep: Container[str]) -> None:
    """Forget the commits of earlier attempts but the newest, and the newest that a load would take: nobody asks for
    them, and they would only grow.
    """
    earlier = [
        identity for identity, item in checkpoints.items() if item.state == COMMITTED and order(identity)[0] < attempt
    ]
    earlier.sort(key=order, reverse=True)
    kept = {*earlier[:1], next((identity for identity in earlier if _is_latest(checkpoints[identity])), "")}
    for identity in earlier:
        if identity not in kept and identity not in keep:
            del checkpoints[identity]


def _is_latest(item: CheckpointState) -> bool:
    reference = item.reference
    return reference is not None and layout.is_latest(reference)

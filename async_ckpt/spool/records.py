"""The records of ``ready/``: one file for each checkpoint that is admitted and not yet released.

Admission is the moment in which a record, complete by then, gets its name there (by a link, or by a rename where files
cannot be without a name): before it there is no checkpoint, after it there is one, whoever dies.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from .. import layout
from ..capture.content import pack_path
from ..errors import IntegrityError, SpoolError, os_reason
from ..manifest import LINK, PACKED, FileEntry, Manifest, dump
from ..system.clock import Moment, read_moment
from ..system.files import write_new
from .directories import spool_errors
from .spool_directory import SpoolDirectory

#: When something was captured of which nobody says when.
UNKNOWN = Moment(0.0, "", 0)


@dataclass(frozen=True)
class Admitted:
    """One record.

    Parameters
    ----------
    id : str
        ``<attempt>.<name>.<version>``.
    reference : dict
        What users get and what the store will hold (``layout.reference``).
    manifest : Manifest
        As captured.
    data : str
        Absolute directory of the snapshot.
    saved_path : str
        Absolute path that was saved.
    captured : Moment
        When its capture began.
    blocked_s : float or None
        For how many seconds whoever trains was held up by the save; None: for none, or nobody knows.
    """

    id: str
    reference: dict[str, Any]
    manifest: Manifest
    data: str
    saved_path: str
    captured: Moment = UNKNOWN
    blocked_s: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        return layout.order(self.reference)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.reference["size"])

    @functools.cached_property
    def entries(self) -> dict[str, FileEntry]:
        """The manifest's files by path."""
        return {entry.path: entry for entry in self.manifest.files}

    def file(self, path: str) -> str:
        """Absolute path of one captured file."""
        return os.path.join(self.data, path)

    def to_json(self) -> dict[str, Any]:
        """As it stands in ``ready/``."""
        return {
            "id": self.id, "reference": self.reference, "manifest": self.manifest.to_json(), "data": self.data,
            "source": self.saved_path, "captured_ns": self.captured.wall_ns, "captured": self.captured,
            "blocked_s": self.blocked_s,
        }  # fmt: skip

    @classmethod
    def from_json(cls, identity: str, record: Any, *, where: str) -> Admitted:
        """Read a record; ``IntegrityError``, ``ValueError``, ``KeyError`` or ``TypeError`` if it is damaged."""
        reference = record["reference"]
        if not layout.is_reference(reference) or not isinstance(reference.get("size"), int):
            raise ValueError("its reference is damaged")
        manifest = Manifest.from_json(record["manifest"], where=where)
        # Records of earlier versions say less, or nothing.
        captured = read_moment(record.get("captured")) or UNKNOWN._replace(wall_ns=int(record.get("captured_ns", 0)))
        blocked = record.get("blocked_s")
        blocked_s = blocked if isinstance(blocked, float) else None
        return cls(identity, reference, manifest, record["data"], record["source"], captured, blocked_s)


class Records:
    """The records of one spool."""

    def __init__(self, spool: SpoolDirectory) -> None:
        self._spool = spool

    def _path(self, identity: str) -> str:
        return self._spool.path("ready", f"{identity}.json")

    def admit(
        self, reference: Mapping[str, Any], manifest: Manifest, data: str, saved_path: str,
        captured: Moment = UNKNOWN, blocked_s: float | None = None,
    ) -> Admitted:  # fmt: skip
        """Make a captured snapshot a checkpoint. After this returns it survives the death of any process.

        The parameters are those of ``Admitted``.

        Raises
        ------
        SpoolError
            The record cannot be written; there is no checkpoint, and the snapshot is the caller's to drop.
        """
        identity = layout.identity(reference)
        path = os.path.abspath(saved_path)
        admitted = Admitted(identity, dict(reference), manifest, data, path, captured, blocked_s)
        with spool_errors("The checkpoint cannot be admitted", self._spool.path("ready")):
            try:
                self.write(admitted)
            except FileNotFoundError:
                self._spool.mend()
                self.write(admitted)
        return admitted

    def write(self, admitted: Admitted) -> None:
        """Give a record its name. ``OSError`` if that cannot be done."""
        staged = self._spool.path("staging", f"{self._spool.saver_names.own()}-{secrets.token_hex(8)}.json")
        write_new(self._path(admitted.id), dump(admitted.to_json()), staged)

    def drop(self, identity: str) -> None:
        """Remove a record; one that is gone is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(identity))

    def ids(self) -> list[str]:
        """Ids of what is admitted and not yet released, in no particular order."""
        try:
            names = os.listdir(self._spool.path("ready"))
        except FileNotFoundError:
            return []
        return [name[: -len(".json")] for name in names if name.endswith(".json")]

    def __contains__(self, identity: object) -> bool:
        """Whether a checkpoint is admitted and not yet released."""
        return os.path.exists(self._path(str(identity)))

    def read(self, identity: str) -> Admitted | None:
        """One record; None if it is not (or no longer) there.

        Raises
        ------
        IntegrityError
            It is damaged, or another user's.
        SpoolError
            It cannot be read now.
        """
        path, what = self._path(identity), f"The spool's record of checkpoint {identity} cannot be read"
        with spool_errors(what, path):
            try:
                with open(path, "rb") as file:
                    return Admitted.from_json(identity, json.load(file), where=path)
            except FileNotFoundError:
                return None
            except PermissionError as error:  # Another user has written it.
                raise IntegrityError(
                    f"{what}: {os_reason(error)}", where=path, hint="Let whoever saves be the task's user"
                ) from error
            except (ValueError, KeyError, TypeError) as error:
                raise IntegrityError(
                    f"{what}: {error}", where=path, hint="It is left where it is; the checkpoint cannot be uploaded"
                ) from error

    def pending(self) -> list[Admitted]:
        """All readable records, oldest first."""
        found = []
        for identity in self.ids():
            with contextlib.suppress(IntegrityError, SpoolError):
                item = self.read(identity)
                if item is not None:
                    found.append(item)
        return sorted(found, key=lambda item: item.order)


def torn_file(item: Admitted, uploaded: Container[str]) -> str | None:
    """The first file of a snapshot that is not what was captured, or None. Those ``uploaded`` are in the store
    already and do not matter.
    """
    return next((e.path for e in item.manifest.files if e.path not in uploaded and is_torn(item, e)), None)


def is_torn(item: Admitted, entry: FileEntry) -> bool:
    """Whether a captured file was removed, or written to while no lease was held.

    A link that is still the trainer's inode must have the facts of its capture. Another inode is a private copy, made
    under the lease and renamed over the link.
    """
    try:
        if entry.how == PACKED:
            return os.stat(pack_path(item.data)).st_size < entry.offset + entry.size
        status = os.stat(item.file(entry.path), follow_symlinks=False)
    except FileNotFoundError:
        return True
    is_linked = entry.how == LINK and status.st_ino == entry.ino
    return status.st_size != entry.size or (is_linked and status.st_mtime_ns != entry.mtime_ns)

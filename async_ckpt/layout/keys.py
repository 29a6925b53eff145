"""Keys: the names of folders and objects in the store, made and taken apart. The whole layout: ``__init__.py``."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, shorten

ROOT = "mf.checkpoints/checkpoints"
DEFAULT_NAME = "mfchckpt"
LATEST = "latest"
_SUFFIX = ".metadata"
#: What a name may not have: ``/`` makes a folder of it, others break lines of logs or the XML of S3's listings.
_NOT_IN_NAMES = re.compile(r"[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
#: Of UTF-8. With hash, attempt, version and suffix around it a name must fit the 255 bytes of a file's name.
_NAME_BYTES = 200
#: So much of a name that is refused stands in the error.
_SHOWN = 60
#: Digits of an attempt's or a version's number.
MAX_DIGITS = 18
_START = re.compile(r"(\d+)\.start-(\d+)(?:-([0-9a-f]+|node\d+))?")
#: Of a key's last part the first two fields and the last are fixed; all between is the name, dots included. Other
#: decorators of metaflow-checkpoint keep theirs under other roots, such as ``mf.huggingface_hub/checkpoints``.
_KEY = re.compile(
    r"(?P<root>(?:[^/]+/)+checkpoints)/artifacts"
    r"/(?P<flow>[^/]+)/(?P<step>[^/]+)/(?P<scope>[^/]+)/(?P<identifier>[^/]+)"
    r"/(?P<hash>[^/.]+)\.(?P<attempt>\d+)\.(?P<name>[^/]+)\.(?P<version>\d+)"
)
_HASHED_FOLDER = f"{ROOT}/artifact_metadata/"


def short_hash(value: Any, length: int) -> str:
    """First ``length`` hex digits of the SHA-256 over ``value`` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def metadata_folder(pathspec: str) -> str:
    """Folder of the metadata of one task's checkpoints.

    Raises
    ------
    UsageError
        The pathspec has not four parts.
    """
    parts = pathspec.split("/")
    if len(parts) != 4 or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{pathspec!r} is not the pathspec of a task", hint="It reads flow/run/step/task")
    return f"{ROOT}/metadata/{pathspec}"


def metadata_of_flow(flow: str) -> str:
    """The folder above ``metadata_folder`` of all tasks of a flow."""
    return f"{ROOT}/metadata/{flow}"


def begun_folder(pathspec: str) -> str:
    """Folder of what attempts of a task were last about to commit."""
    return f"{ROOT}/begun/{pathspec}"


def begun_key(pathspec: str, attempt: int, start: int = 0) -> str:
    """Key of the object that says what one start of an attempt was last about to commit."""
    return f"{begun_folder(pathspec)}/{attempt}" + (f".{start}" if start else "")


def begun_attempt(name: str) -> int | None:
    """Whose it is, by its name in ``begun_folder``."""
    found = re.fullmatch(r"(\d{1,18})(\.\d+)?", name)
    return int(found[1]) if found else None


def claim_key(pathspec: str, attempt: int, start: int, mark: str = "") -> str:
    """Key of the object that says who has begun an attempt for the ``start``-th time, from 0. ``mark``: of one of
    several who may have, ``[0-9a-z]+``.
    """
    return f"{metadata_folder(pathspec)}/{attempt}.start-{start}" + (f"-{mark}" if mark else "")


def claim_parts(name: str) -> tuple[int, int, str] | None:
    """(attempt, start, mark) of a claim, by its name in ``metadata_folder``; None for any other object."""
    found = _START.fullmatch(name)
    if found is None or max(len(found[1]), len(found[2])) > MAX_DIGITS:
        return None
    return int(found[1]), int(found[2]), found[3] or ""


def decision_key(pathspec: str, attempt: int, start: int = 0) -> str:
    """Key of the object that says what all nodes of a gang load when an attempt begins for the ``start``-th time."""
    return f"{ROOT}/gangs/{pathspec}/{attempt}" + (f".{start}" if start else "")


def damaged_folder(pathspec: str) -> str:
    """Folder of what nodes of a gang could not load."""
    return f"{ROOT}/gangs/{pathspec}/damaged"


def damaged_key(pathspec: str, key: str) -> str:
    """Key of the object that says so of the checkpoint ``key``."""
    return f"{damaged_folder(pathspec)}/{short_hash([key], 16)}"


def is_in(key: str, checkpoint: str) -> bool:
    """Whether an object is one of a checkpoint's: a file of it, or its tar."""
    return key == checkpoint or key.startswith(f"{checkpoint}/")


def deleting_folder(flow: str, step: str = "") -> str:
    """Folder of the notes of checkpoints of a flow, or of one of its steps, that are being removed."""
    return f"{ROOT}/deleting/{flow}" + (f"/{step}" if step else "")


def deleting_key(parts: KeyParts) -> str:
    """Key of the note that a checkpoint is being removed."""
    folder = parts.root + deleting_folder(parts.flow, parts.step).removeprefix(ROOT)
    return f"{folder}/{parts.scope}/{parts.identifier}/{parts.stem}.json"


def shards_folder(reference: Mapping[str, Any]) -> str:
    """Folder of what the ranks of a collective checkpoint say of their shards."""
    parts = parse_key(reference["key"])
    stem = f"{parts.attempt}.{parts.name}.{parts.version}"
    return f"{shards_of_task(reference['pathspec'])}/{stem}"


def shards_of_task(pathspec: str) -> str:
    """The folder above ``shards_folder`` of all collective checkpoints of a task."""
    return f"{ROOT}/shards/{pathspec}"


@dataclass(frozen=True)
class KeyParts:
    """A checkpoint's key taken apart."""

    key: str
    root: str
    flow: str
    step: str
    scope: str
    identifier: str
    pathspec_hash: str
    attempt: int
    name: str
    version: int

    @property
    def order(self) -> tuple[int, int]:
        """See ``layout.order``."""
        return self.attempt, self.version

    @property
    def stem(self) -> str:
        return f"{self.pathspec_hash}.{self.attempt}.{self.name}.{self.version}"

    @property
    def scope_folder(self) -> str:
        return f"{self.root}/artifact_metadata/{self.flow}/{self.step}/{self.scope}/{self.identifier}"

    @property
    def metadata_key(self) -> str:
        return f"{self.scope_folder}/{self.stem}{_SUFFIX}"

    @property
    def manifest_key(self) -> str:
        return f"{self.root}/manifests/{self.flow}/{self.step}/{self.scope}/{self.identifier}/{self.stem}.json"

    def task_metadata_key(self, pathspec: str) -> str:
        folder = self.root + metadata_folder(pathspec).removeprefix(ROOT)
        return f"{folder}/{self.attempt}.{self.name}.{self.version}{_SUFFIX}"


def parse_key(key: str) -> KeyParts:
    """Take a checkpoint's key apart.

    Raises
    ------
    UsageError
        It is not one: wrong shape, or parts such as ``..`` that would lead out of the store.
    """
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None or any(part in (".", "..") for part in key.split("/")):
        raise UsageError(
            f"{key!r} is not the key of a checkpoint",
            hint="Use reference['key'] as save() or list() returned it, or the whole reference",
        )
    part = match.groupdict()
    if max(len(part["attempt"]), len(part["version"])) > MAX_DIGITS:
        raise UsageError(f"{key[:200]!r} is not the key of a checkpoint: no attempt or version has such a number")
    return KeyParts(
        key, part["root"], part["flow"], part["step"], part["scope"], part["identifier"], part["hash"],
        int(part["attempt"]), part["name"], int(part["version"]),
    )  # fmt: skip


def metadata_name_parts(folder: str, name: str) -> tuple[int, str, int] | None:
    """(attempt, name, version) of the checkpoint whose metadata is the object ``name`` in ``folder``, a task's or a
    step's; None for any other object.
    """
    if not name.endswith(_SUFFIX):
        return None
    stem = name.removesuffix(_SUFFIX)
    if folder.startswith(_HASHED_FOLDER):
        stem = stem.partition(".")[2]
    match = re.fullmatch(r"(\d+)\.([^/]+)\.(\d+)", stem)
    if match is None or max(len(match[1]), len(match[3])) > MAX_DIGITS:
        return None
    return int(match[1]), match[2], int(match[3])


def check_name(name: Any) -> str:
    """Return the name of a checkpoint as it stands in its key: a number as its text, None as the default name.

    Raises
    ------
    UsageError
        It is something else, is empty, is longer than 200 bytes of UTF-8, or has a character that keys cannot have.
    """
    if name is None:
        return DEFAULT_NAME
    text = name_text(name)
    if not isinstance(text, str):
        raise UsageError(f"{name!r} cannot be the name of a checkpoint: it is no text", hint="Use name=str(...)")
    if not text:
        raise UsageError("A checkpoint cannot have the empty name", hint=f"Leave name out for {DEFAULT_NAME!r}")
    found = _NOT_IN_NAMES.search(text)
    if found is not None:
        why = "would be a folder of its key, in which list() does not look" if found[0] == "/" else "breaks its key"
        raise UsageError(
            f"{shorten(text, _SHOWN)!r} cannot be the name of a checkpoint: {found[0]!r} {why}",
            hint="Use another character, such as '-'; metadata takes any text",
        )
    if len(text.encode()) > _NAME_BYTES:
        raise UsageError(
            f"{shorten(text, _SHOWN)!r} cannot be the name of a checkpoint: it has {len(text.encode())} bytes of "
            f"UTF-8, and {_NAME_BYTES} are the most that fit a file's name with the rest of the key",
            hint="Keep the name short, and the rest in metadata",
        )
    return text


def name_text(name: Any) -> Any:
    """A number or a path that is given as a name, as its text; anything else as it is."""
    return str(name) if isinstance(name, (numbers.Number, os.PathLike)) else name

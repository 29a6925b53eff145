"""Where a checkpoint lies in the store, and what its metadata says.

The layout is the one Metaflow's users have: metaflow-checkpoint 0.2.14 lists and loads what is written here, and
the other way round (``tests/e2e/test_compatibility.py`` proves it). All keys are relative to the datastore's root::

    mf.checkpoints/checkpoints/artifacts/<flow>/<step>/<scope>/<identifier>/<stem>[/<file>...]
    mf.checkpoints/checkpoints/artifact_metadata/<flow>/<step>/<scope>/<identifier>/<stem>.metadata   and  latest
    mf.checkpoints/checkpoints/metadata/<flow>/<run>/<step>/<task>/<attempt>.<name>.<version>.metadata    and  latest
    mf.checkpoints/checkpoints/manifests/<flow>/<step>/<scope>/<identifier>/<stem>.json              ours alone
    mf.checkpoints/checkpoints/metadata/<flow>/<run>/<step>/<task>/<attempt>.start-<n>               ours alone
    mf.checkpoints/checkpoints/begun/<flow>/<run>/<step>/<task>/<attempt>   and  <attempt>.<n>       ours alone
    mf.checkpoints/checkpoints/shards/<flow>/<run>/<step>/<task>/<attempt>.<name>.<version>/<rank>   and  outcome   ours
    mf.checkpoints/checkpoints/gangs/<flow>/<run>/<step>/<task>/<attempt>   and  damaged/<hash>      ours alone

``<stem>`` is ``<pathspec hash>.<attempt>.<name>.<version>``.
The manifest stands in a folder of its own: the peer takes every name with four dots beside the metadata for metadata.

An attempt may begin more than once under one number. ``<attempt>.start-<n>`` says that somebody has begun it for the
n-th time, from 0 (``claims.py``); versions of that start count from ``n * START_STEP`` on. It stands beside the
metadata so that one listing shows both, and has two fields, which the peer passes over.

``begun`` (``<attempt>.<n>`` where it was begun before) names what an attempt was last about to commit,
``{"keys": [...]}``, newest first, of those saved with
``latest=True``. It is written before the first of them is committed, and ``latest`` before the next ``begun``: so what
is newer than ``latest`` stands in there, and a task's newest checkpoint is found without listing its history. Gangs,
in which many write side by side, have none.

A gang (``@parallel``) is one task here, its control task, and so are its checkpoints. ``collective.py`` says what
``shards`` and ``gangs`` are for.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

ROOT = "mf.checkpoints/checkpoints"
DEFAULT_NAME = "mfchckpt"
TAG_PREFIX = "checkpoint:"
LATEST = "latest"
STORAGE_FORMATS = ("files", "tar")

#: Between two collective saves, counters of versions have room for so many others; see ``TaskInfo.collective_version``.
COLLECTIVE_STEP = 1_000_000
#: So many collective saves fit between two restarts of the ranks, and so many restarts into one start of an attempt.
GENERATION_STEP = 100_000
GENERATIONS = 100
#: From one start of an attempt to the next, counters of versions go on by so much.
START_STEP = COLLECTIVE_STEP * GENERATION_STEP * GENERATIONS
_SUFFIX = ".metadata"
#: What a name may not have: ``/`` makes a folder of it, others break lines of logs or the XML of S3's listings.
_NOT_IN_NAMES = re.compile(r"[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
#: Of UTF-8. With hash, attempt, version and suffix around it a name must fit the 255 bytes of a file's name.
_NAME_BYTES = 200
#: So much of a name that is refused stands in the error.
_SHOWN = 60
#: Digits of an attempt's or a version's number.
_MAX_DIGITS = 18
_START = re.compile(r"(\d+)\.start-(\d+)(?:-([0-9a-f]+|node\d+))?")
#: Of a key's last part the first two fields and the last are fixed; all between is the name, dots included. Other
#: decorators of metaflow-checkpoint keep theirs under other roots, such as ``mf.huggingface_hub/checkpoints``.
_KEY = re.compile(
    r"(?P<root>(?:[^/]+/)+checkpoints)/artifacts"
    r"/(?P<flow>[^/]+)/(?P<step>[^/]+)/(?P<scope>[^/]+)/(?P<identifier>[^/]+)"
    r"/(?P<hash>[^/.]+)\.(?P<attempt>\d+)\.(?P<name>[^/]+)\.(?P<version>\d+)"
)
_HASHED_FOLDER = f"{ROOT}/artifact_metadata/"


@functools.lru_cache(maxsize=256)
def _pathspec_hash(pathspec: str) -> str:
    return short_hash(pathspec, 8)


def short_hash(value: Any, length: int) -> str:
    """First ``length`` hex digits of the SHA-256 over ``value`` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def scope_of(namespace_or_tag_value: str) -> str:
    """The scope of a namespace, or of the value of a run tag ``checkpoint:<value>``: 12 hex digits."""
    return hashlib.sha256(namespace_or_tag_value.encode()).hexdigest()[:12]


def step_identifier(step: str) -> str:
    """Task identifier of a task that is not in a foreach: the same for every run of the step."""
    return short_hash(step, 12)


def foreach_identifier(stack: Sequence[tuple[int, Any]], *, gang: bool = False) -> str:
    """Task identifier of one split.

    Parameters
    ----------
    stack : sequence of (int, Any)
        Index and value of each foreach, outermost first. For a gang, the innermost value is replaced by 0, the control
        task's index, so that all its ranks have one identifier.
    gang : bool
        Whether the step is ``@parallel``.
    """
    salt = "parallel-task-entropy" if gang else "foreach-task-entropy"
    hashes = [_value_hash(index, value) for index, value in (stack[:-1] if gang else stack)]
    hashes += [short_hash(0, 64)] if gang else []
    return hashlib.sha256("".join([*hashes, short_hash(short_hash(salt, 64), 64)]).encode()).hexdigest()[:12]


def _value_hash(index: int, value: Any) -> str:
    """Values that are not JSON (the peer refuses them) are told apart by their ``repr``, or by their index where that
    is not the same in every process.
    """
    try:
        return short_hash(value, 64)
    except (TypeError, ValueError):
        text = repr(value)
        varies = isinstance(value, (set, frozenset)) or re.search(r" at 0x[0-9a-f]+", text)
        return short_hash(["index", index] if varies else text, 64)


@dataclass(frozen=True)
class TaskInfo:
    """The task that checkpoints belong to.

    Parameters
    ----------
    flow, run, step, task : str
        The parts of the pathspec.
    attempt : int
        Counted from 0.
    scope, identifier : str
        12 hex digits each; see ``scope_of``, ``step_identifier``, ``foreach_identifier``.
    node, nodes : int
        Of a gang, whose control task ``task`` is: which node this is, and how many there are.
    """

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    scope: str
    identifier: str
    node: int = 0
    nodes: int = 1

    @property
    def pathspec(self) -> str:
        return f"{self.flow}/{self.run}/{self.step}/{self.task}"

    @property
    def pathspec_hash(self) -> str:
        return _pathspec_hash(self.pathspec)

    @property
    def task_folder(self) -> str:
        """Folder of the metadata of this task's checkpoints, and of its ``latest``."""
        return metadata_folder(self.pathspec)

    @property
    def scope_folder(self) -> str:
        """Folder of the metadata of this step's checkpoints in this scope, and of their ``latest``."""
        return f"{ROOT}/artifact_metadata/{self.flow}/{self.step}/{self.scope}/{self.identifier}"

    def version(self, counter: int) -> int:
        """The version of this node's save number ``counter``: no two nodes of a gang give out the same."""
        return counter * self.nodes + self.node

    def counter(self, version: int) -> int:
        """The least number that no save has had yet, where one has this version."""
        return version // self.nodes + 1

    def start_of(self, version: int) -> int:
        """Which start of an attempt has given out this version."""
        return version // (START_STEP * self.nodes)

    @property
    def most_starts(self) -> int:
        """So many starts of an attempt have versions that fit ``_MAX_DIGITS``."""
        return int(10**_MAX_DIGITS) // (START_STEP * self.nodes)

    def collective_version(self, number: int) -> int:
        """The version of the gang's collective save number ``number``, from 1: the same on each node, whatever they
        have saved by themselves in between.
        """
        return number * COLLECTIVE_STEP * self.nodes

    def key(self, name: str, version: int, *, attempt: int | None = None) -> str:
        """Key of a checkpoint of this task."""
        attempt = self.attempt if attempt is None else attempt
        stem = f"{self.pathspec_hash}.{attempt}.{name}.{version}"
        return f"{ROOT}/artifacts/{self.flow}/{self.step}/{self.scope}/{self.identifier}/{stem}"


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
    if found is None or max(len(found[1]), len(found[2])) > _MAX_DIGITS:
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


def shards_folder(reference: Mapping[str, Any]) -> str:
    """Folder of what the ranks of a collective checkpoint say of their shards."""
    parts = parse_key(reference["key"])
    stem = f"{parts.attempt}.{parts.name}.{parts.version}"
    return f"{shards_of_task(reference['pathspec'])}/{stem}"


def shards_of_task(pathspec: str) -> str:
    """The folder above ``shards_folder`` of all collective checkpoints of a task."""
    return f"{ROOT}/shards/{pathspec}"


def identity(reference: Mapping[str, Any]) -> str:
    """Id of a checkpoint in its task's spool: ``<attempt>.<name>.<version>``, and of a rank's shard
    ``<attempt>.<name>@<rank>.<version>``.
    """
    rank = f"@{reference['rank']}" if is_shard(reference) else ""
    return f"{reference['attempt']}.{reference['name']}{rank}.{reference['version_id']}"


def is_shard(reference: Mapping[str, Any]) -> bool:
    """Whether this is one rank's part of a collective checkpoint."""
    return reference.get("rank") is not None


def whole(reference: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a shard's reference that is of all ranks' checkpoint; any other's is as it was."""
    return {name: value for name, value in reference.items() if name != "rank"}


def life(reference: Mapping[str, Any]) -> tuple[int, int]:
    """(attempt, generation) of the ranks that saved a shard. ``GENERATIONS`` of them belong to one start."""
    return order(reference)[0], generation(reference)


def generation(reference: Mapping[str, Any]) -> int:
    """How often the ranks that saved a shard had been started again."""
    number = int(reference["version_id"]) // (COLLECTIVE_STEP * int(reference.get("nodes", 1)))
    return max(number - 1, 0) // GENERATION_STEP


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
    if max(len(part["attempt"]), len(part["version"])) > _MAX_DIGITS:
        raise UsageError(f"{key[:200]!r} is not the key of a checkpoint: no attempt or version has such a number")
    return KeyParts(
        key, part["root"], part["flow"], part["step"], part["scope"], part["identifier"], part["hash"],
        int(part["attempt"]), part["name"], int(part["version"]),
    )  # fmt: skip


def is_metadata(name: str) -> bool:
    """Whether an object's name, without its folder, is that of a checkpoint's metadata."""
    return name.endswith(_SUFFIX) and name.count(".") >= 3


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
    if match is None or max(len(match[1]), len(match[3])) > _MAX_DIGITS:
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
            f"{_shown(text)} cannot be the name of a checkpoint: {found[0]!r} {why}",
            hint="Use another character, such as '-'; metadata takes any text",
        )
    if len(text.encode()) > _NAME_BYTES:
        raise UsageError(
            f"{_shown(text)} cannot be the name of a checkpoint: it has {len(text.encode())} bytes of UTF-8, and "
            f"{_NAME_BYTES} are the most that fit a file's name with the rest of the key",
            hint="Keep the name short, and the rest in metadata",
        )
    return text


def name_text(name: Any) -> Any:
    """A number or a path that is given as a name, as its text; anything else as it is."""
    return str(name) if isinstance(name, (numbers.Number, os.PathLike)) else name


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def reference(
    task: TaskInfo, *, name: str, version: int, url: str, size: int, metadata: Any, storage_format: str,
    latest: bool, now: datetime.datetime | None = None, shard: tuple[int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The metadata of a checkpoint: what is stored, listed and handed out.

    ``url`` is that of the store's root; ``size`` the sum of the files' sizes in bytes; ``metadata`` the user's as plain
    JSON, a dict as a rule (see ``metadata.plain``); ``shard`` rank and world of a part of a collective checkpoint;
    ``now`` the moment, with its zone. All fields but ``created_at``, ``latest``,
    ``manifest``, ``rank``, ``world``, ``node`` and ``nodes`` are those existing clients read. They compare
    ``created_on`` as local times without a zone, so it stays one; ``created_at`` is what orders (see ``moments``).
    """
    key = task.key(name, version)
    now = now or datetime.datetime.now(datetime.timezone.utc)
    return {
        "size": size,
        "pathspec": task.pathspec,
        "pathspec_hash": task.pathspec_hash,
        "attempt": task.attempt,
        "key": key,
        "type": "checkpoint",
        "url": f"{url.rstrip('/')}/{key}",
        "name": name,
        "created_on": now.astimezone().replace(tzinfo=None).isoformat(),
        "created_at": now.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds"),
        "metadata": metadata,
        "storage_format": storage_format,
        "creation_context": "task",
        "version_id": version,
        "latest": latest,
        "manifest": parse_key(key).manifest_key,
        **({"rank": shard[0], "world": shard[1]} if shard else {}),
        **({"node": task.node, "nodes": task.nodes} if task.nodes > 1 else {}),
    }


def is_reference(data: Any) -> bool:
    """Whether stored metadata is that of a checkpoint."""
    try:
        parse_key(data["key"])
        order(data)
        return isinstance(data["pathspec"], str) and data.get("storage_format") in STORAGE_FORMATS
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False


def order(data: Mapping[str, Any]) -> tuple[int, int]:
    """(attempt, version) of a reference, by which checkpoints of one task are ordered.

    Clients of old wrote the attempt of a subprocess as a string.
    """
    return int(data.get("attempt") or 0), int(data.get("version_id") or 0)

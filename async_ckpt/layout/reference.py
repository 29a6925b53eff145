"""References: the metadata of one checkpoint, as it is stored, listed and handed out."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from .keys import parse_key
from .task import COLLECTIVE_STEP, GENERATION_STEP, TaskInfo

STORAGE_FORMATS = ("files", "tar")


def identity(reference: Mapping[str, Any]) -> str:
    """Id of a checkpoint in its task's spool: ``<attempt>.<name>.<version>``, and of a rank's shard
    ``<attempt>.<name>@<rank>.<version>``.
    """
    rank = f"@{reference['rank']}" if is_shard(reference) else ""
    return f"{reference['attempt']}.{reference['name']}{rank}.{reference['version_id']}"


def is_shard(reference: Mapping[str, Any]) -> bool:
    """Whether this is one rank's part of a collective checkpoint."""
    return reference.get("rank") is not None


def is_latest(reference: Mapping[str, Any]) -> bool:
    """Whether a retry may load a checkpoint by itself; where nobody says, it may."""
    return bool(reference.get("latest", True))


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


def reference(
    task: TaskInfo, *, name: str, version: int, url: str, size: int, metadata: Any, storage_format: str,
    latest: bool, now: datetime.datetime | None = None, shard: tuple[int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The metadata of a checkpoint: what is stored, listed and handed out.

    ``url`` is that of the store's root; ``size`` the sum of the files' sizes in bytes; ``metadata`` the user's as plain
    JSON, a dict as a rule (see ``metadata.plain``); ``shard`` rank and world of a part of a collective checkpoint;
    ``now`` the moment, with its zone. All fields but ``created_at``, ``latest``,
    ``manifest``, ``rank``, ``world``, ``node`` and ``nodes`` are those existing clients read. They compare
    ``created_on`` as local times without a zone, so it stays one; ``created_at`` is what orders (see ``newest.py``).
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

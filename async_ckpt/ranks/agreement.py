"""Checkpoints that several ranks write together, each its shard, agreed on through the store alone.

Who takes part is known to everybody: ranks 0 to ``world - 1``. All shards' files lie under the one key of the
checkpoint, as existing clients expect. In ``layout.shards_folder``:

    <rank>      the rank's shard is in the store: {"world", "reference", "manifest"}
    outcome     what became of it: {"state": "committing"} or {"state": "failed", "why"}

``outcome`` is written once, by compare-and-swap. Rank 0 (its agent) waits for all shards, checks that they fit, decides
to commit, and commits: one manifest, one metadata, like any other checkpoint. The others wait for its metadata. A later
attempt finishes what only lacks the commit, and decides that the rest has failed before it removes it: so nothing is
removed that somebody else still commits.

Beside these folders, ``gone.<attempt>/<node>`` says that a node's task has died: {"ranks"} are those as which it had
saved. All that it had saved is in the store then, so whoever misses a shard of its ranks need not wait for it.

The object ``layout.decision_key`` says what all nodes of a gang load when an attempt begins: {"reference"}, written by
node 0. Objects in ``layout.damaged_folder`` say what some node could not load then: {"key", "why"}. No attempt begins
with that again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import layout
from ..config import Config
from ..errors import IntegrityError, NotFound, UsageError, shorten
from ..manifest import Directory, FileEntry, Manifest, Symlink, dump
from ..stores.base import Store
from ..stores.catalog import read_fields, read_json, read_reference
from ..system.concurrency import for_each

OUTCOME = "outcome"
COMMITTING, FAILED = "committing", "failed"

#: How many ranks are named in an error, and how many characters of what they say are shown.
_NAMED, _SHOWN = 8, 500

ReferenceDict = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What was decided of a collective checkpoint."""

    state: str
    why: str = ""


@dataclass(frozen=True)
class Shard:
    """One rank's part of a checkpoint, as the rank has described it in the store."""

    rank: int
    world: int
    reference: ReferenceDict
    manifest: Manifest


async def put_shard(store: Store, reference: Mapping[str, Any], manifest: Manifest) -> None:
    """Write down in the store that a rank's files are there.

    Raises
    ------
    UsageError
        Another node has saved as the same rank: the two have written over each other, and the checkpoint has failed for
        all ranks.
    """
    key = f"{layout.shards_folder(reference)}/{reference['rank']}"
    shard = dump({"world": reference["world"], "reference": dict(reference), "manifest": manifest.to_json()})
    if await store.put_if(key, shard, None):
        return
    other = (await read_fields(store, key)).get("reference")
    if isinstance(other, dict) and other.get("node") != reference.get("node"):
        why = same_rank(other, reference)
        await decide(store, reference, Outcome(FAILED, why))
        raise UsageError(why)
    await store.put_bytes(key, shard)  # It was this node, in an earlier try.


def same_rank(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What is wrong where two nodes have written over each other."""
    return (
        f"Nodes {one.get('node')} and {other.get('node')} of the gang both save as rank {other['rank']}. "
        "Start the ranks of all nodes together, so that each has a number of its own"
    )


async def missing_ranks(store: Store, reference: Mapping[str, Any]) -> list[int]:
    """Ranks whose shards are not in the store yet, by one listing."""
    folder = layout.shards_folder(reference)
    names = {entry.key[len(folder) + 1 :] async for entry in store.list(folder)}
    return [rank for rank in range(reference["world"]) if str(rank) not in names]


async def put_gone(store: Store, pathspec: str, attempt: int, node: int, ranks: Sequence[int]) -> None:
    """Write down that a node of a gang, whose processes saved as these ranks, saves no more in this attempt."""
    key = f"{layout.shards_of_task(pathspec)}/gone.{attempt}/{node}"
    await store.put_bytes(key, dump({"ranks": list(ranks)}))


async def gone_ranks(store: Store, reference: Mapping[str, Any]) -> set[int]:
    """Ranks that will not save any more. Of a node that never saved only known where nodes are ranks, as ours is."""
    folder = f"{layout.shards_of_task(reference['pathspec'])}/gone.{reference['attempt']}"
    nodes_are_ranks = reference.get("nodes") == reference["world"] and reference.get("node") == reference["rank"]
    found: set[int] = set()
    for key in [entry.key async for entry in store.list(folder)]:
        node = key[len(folder) + 1 :]
        with contextlib.suppress(KeyError, TypeError, ValueError):
            ranks = (await read_fields(store, key))["ranks"]
            found.update(map(int, ranks or ([node] if nodes_are_ranks else [])))
    return found


async def put_damaged(store: Store, pathspec: str, key: str, why: str) -> None:
    """Say that a node could not load a checkpoint of its gang."""
    await store.put_bytes(layout.damaged_key(pathspec, key), dump({"key": key, "why": why}))


async def read_damaged(store: Store, pathspec: str) -> dict[str, str]:
    """Checkpoints that some node could not load, by key, and why."""
    found: dict[str, str] = {}
    for key in [entry.key async for entry in store.list(layout.damaged_folder(pathspec))]:
        with contextlib.suppress(KeyError):
            said = await read_fields(store, key)
            found[str(said["key"])] = str(said["why"])
    return found


async def read_outcome(store: Store, reference: Mapping[str, Any]) -> Outcome | None:
    """What was decided; None: nothing yet."""
    key = f"{layout.shards_folder(reference)}/{OUTCOME}"
    try:
        data = await read_json(store, key)
        return Outcome(str(data["state"]), str(data.get("why", "")))
    except NotFound:
        return None
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"What was decided of a collective checkpoint cannot be read: {error}", where=key
        ) from None


async def decide(store: Store, reference: Mapping[str, Any], outcome: Outcome) -> Outcome:
    """Decide what becomes of a checkpoint, unless somebody has: what counts is returned."""
    key = f"{layout.shards_folder(reference)}/{OUTCOME}"
    found = await read_outcome(store, reference)
    if found is None and await store.put_if(key, dump({"state": outcome.state, "why": outcome.why}), None):
        return outcome
    return found or await read_outcome(store, reference) or outcome


async def read_shards(store: Store, reference: Mapping[str, Any], config: Config) -> list[Shard]:
    """What all ranks say, by rank.

    Raises
    ------
    NotFound, IntegrityError
        One of them says nothing, or nonsense.
    """
    folder = layout.shards_folder(reference)
    found: list[Shard] = []

    async def read(rank: int) -> None:
        key = f"{folder}/{rank}"
        data = await read_json(store, key)
        try:
            manifest = Manifest.from_json(data["manifest"], where=key)
            if not layout.is_reference(data["reference"]):
                raise ValueError("its reference is damaged")
            found.append(Shard(rank, int(data["world"]), data["reference"], manifest))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"What rank {rank} says of its shard cannot be read: {error}", where=key) from None

    await for_each(range(reference["world"]), config.files_in_flight, read)
    return sorted(found, key=lambda shard: shard.rank)


def merge(shards: Sequence[Shard]) -> tuple[ReferenceDict, Manifest]:
    """Make one checkpoint of its shards.

    Raises
    ------
    UsageError
        They do not belong together: names the ranks, and what is wrong with them.
    """
    first = shards[0]
    for shard in shards[1:]:
        for what, mine, theirs in (
            ("that there are so many ranks", first.world, shard.world),
            ("the metadata", first.reference["metadata"], shard.reference["metadata"]),
        ):
            if not _same(mine, theirs):
                raise UsageError(
                    f"Ranks {first.rank} and {shard.rank} do not save the same checkpoint: of {what}, "
                    f"one says {shorten(repr(mine), _SHOWN)} and the other {shorten(repr(theirs), _SHOWN)}",
                    hint="Every rank calls save(collective=True) equally often, with the same metadata",
                )
    files: list[FileEntry] = []
    links: list[Symlink] = []
    dirs: dict[str, Directory] = {}
    #: Which rank has written a file or a link, and which one was the first to have a folder, by path.
    writers: dict[str, int] = {}
    folders: dict[str, int] = {}
    for shard in shards:
        files += [entry._replace(rank=shard.rank) for entry in shard.manifest.files]
        links += [link._replace(rank=shard.rank) for link in shard.manifest.links]
        for folder in shard.manifest.dirs:
            dirs.setdefault(folder.path, folder)
            folders.setdefault(folder.path, shard.rank)
        for path in shard.manifest.paths:
            if path in writers:
                raise _same_name(path, writers[path], shard.rank)
            writers[path] = shard.rank
    for path in sorted(writers.keys() & folders.keys()):
        raise _same_name(path, writers[path], folders[path])
    reference = layout.whole(first.reference)
    reference["size"] = sum(shard.reference["size"] for shard in shards)
    return reference, replace(first.manifest, files=files, dirs=sorted(dirs.values()), links=links)


def _same(mine: Any, theirs: Any) -> bool:
    """Whether two JSON values are equal; NaN is equal to NaN here."""
    return bool(mine == theirs) or json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _same_name(path: str, rank: int, other: int) -> UsageError:
    return UsageError(
        f"Ranks {rank} and {other} both write {path!r} in one collective checkpoint",
        hint="Have each rank write files of its own, e.g. with its rank in the name",
    )


def ranks_in_words(ranks: Sequence[int]) -> str:
    """``ranks 2, 3, 5 and 60 more``."""
    named = ", ".join(map(str, ranks[:_NAMED]))
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"


async def read_commit(store: Store, reference: Mapping[str, Any]) -> ReferenceDict | None:
    """The metadata of a checkpoint that is committed; None: it is not."""
    key = layout.parse_key(reference["key"]).task_metadata_key(reference["pathspec"])
    return await read_reference(store, *key.rsplit("/", 1))


async def drop_shards(store: Store, reference: Mapping[str, Any], config: Config, ranks: Iterable[int]) -> None:
    """Remove what ranks said of their shards: of a checkpoint that is committed, nobody asks."""
    folder = layout.shards_folder(reference)
    await for_each((f"{folder}/{rank}" for rank in ranks), config.files_in_flight, store.delete)


async def left_by(store: Store, pathspec: str, now: tuple[int, int]) -> list[ReferenceDict]:
    """References, of one rank each, of the collective checkpoints from before ``now``, an (attempt, generation), whose
    shards lie in the store, newest first.
    """
    folder = layout.shards_of_task(pathspec)
    shards: dict[str, str] = {}
    async for entry in store.list(folder):
        stem, _, name = entry.key[len(folder) + 1 :].rpartition("/")
        if stem and name != OUTCOME and not stem.startswith("gone."):
            shards[stem] = entry.key
    found: list[ReferenceDict] = []
    for key in shards.values():
        reference: Any = (await read_fields(store, key)).get("reference")  # Gone, if rank 0 has just committed it.
        if layout.is_reference(reference) and layout.life(reference) < now:
            found.append(reference)
    return sorted(found, key=layout.order, reverse=True)


async def remove_leftovers(store: Store, pathspec: str, now: tuple[int, int], config: Config) -> None:
    """Remove what was not committed from before ``now``, an (attempt, generation): those ranks have begun anew.

    Nothing is removed without deciding first that it has failed; where the store has no conditional writes, nothing is.
    """
    why = "Its ranks have begun anew without it"
    for reference in await left_by(store, pathspec, now):
        attempt, generation = layout.life(reference)
        if attempt == now[0] and generation // layout.GENERATIONS != now[1] // layout.GENERATIONS:
            continue  # Of another start of this attempt, which may run at this time.
        if await read_commit(store, reference) is None:
            if (await decide(store, reference, Outcome(FAILED, why))).state != FAILED:
                continue  # Its rank 0 commits it in this moment.
            if not store.capabilities.conditional_put:
                return
            await _remove_folder(store, reference["key"], config)
        await _remove_folder(store, layout.shards_folder(reference), config, but=OUTCOME)


async def _remove_folder(store: Store, folder: str, config: Config, *, but: str = "") -> None:
    keys = [entry.key async for entry in store.list(folder) if not but or not entry.key.endswith(f"/{but}")]
    await for_each(keys, config.files_in_flight, store.delete)

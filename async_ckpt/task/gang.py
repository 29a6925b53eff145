"""How an attempt of a gang starts: node 0 decides what is loaded. Either all nodes load that, or none of them goes on.

The nodes meet in the store alone (``ranks/agreement.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

from .. import layout
from ..config import GATHER_FIRST_S, GATHER_LAST_S
from ..errors import IntegrityError, NotFound, UsageError, WaitTimeout
from ..manifest import dump
from ..ranks import agreement
from ..spool.records import Admitted
from ..stores.base import Store
from ..stores.catalog import read_json
from ..system.backoff import Backoff
from ..upload.checkpoint import CheckpointWriter
from ..upload.together import finish
from .checkpointer import Checkpointer

log = logging.getLogger(__name__)


def load_newest(checkpointer: Checkpointer, policy: str, path: str, shard: str = "all") -> dict[str, Any] | None:
    """What ``Checkpointer.load_newest`` does, the same on all nodes.

    Raises
    ------
    WaitTimeout
        Node 0 has not decided in time.
    CheckpointError
        This node cannot load what was decided; the attempt must not begin with a mixture.
    """
    task = checkpointer.task
    if policy == "none":
        return None
    # In a later attempt there usually is something to load, and all nodes have to agree on it: so it is waited for.
    start = checkpointer.tracker.wait_for_start(checkpointer.config.gang_start_timeout_s if task.attempt else None)
    if policy == "fresh" and task.attempt == 0 and (start.first or start.alone):
        return None
    if task.node == 0:
        return _decide(checkpointer, start.number, policy, path, shard)
    return _follow(checkpointer, start.number, path, shard)


def _decide(checkpointer: Checkpointer, start: int, policy: str, path: str, shard: str) -> dict[str, Any] | None:
    # What this node has saved must be in the store first: the other nodes look for it there.
    pending = checkpointer.spool.records.pending()
    checkpointer.tracker.wait_for_all(reversed(pending), checkpointer.config.settle_timeout_s)
    damaged = checkpointer.tracker.run(lambda store: _take_over(store, checkpointer, start))

    def loadable() -> Iterator[dict[str, Any]]:
        for candidate in checkpointer.loader.candidates(policy):
            if isinstance(candidate, Admitted):
                continue  # It is not in the store yet, so the other nodes cannot load it.
            if candidate["key"] not in damaged:
                yield candidate
            else:
                why = damaged[candidate["key"]]
                log.warning(f"A checkpoint is passed over, as another node could not load it: {why}")

    loaded = checkpointer.loader.load_first(loadable(), path, shard)
    # Only now, after it was loaded here: the other nodes must not all try one that is damaged.
    decision = dump({"reference": loaded})
    task = checkpointer.task
    key = layout.decision_key(task.pathspec, task.attempt, start)
    checkpointer.tracker.run(lambda store: store.put_bytes(key, decision))
    return loaded


async def _take_over(store: Store, checkpointer: Checkpointer, start: int) -> dict[str, str]:
    """Commit the newest collective checkpoint of earlier attempts if all its shards are there and rank 0 died before it
    did. Returns what some node could not load, by key with the reason.
    """
    task, config = checkpointer.task, checkpointer.config
    now = task.attempt, start * layout.GENERATIONS
    deadline = time.monotonic() + config.settle_timeout_s
    for reference in await agreement.left_by(store, task.pathspec, now):
        if await agreement.read_commit(store, reference) is not None:
            break
        if not await _is_complete(store, reference, deadline):
            continue
        try:
            await finish(store, CheckpointWriter(store, config), reference, config)
            log.info(f"All ranks had saved {reference['key']}, and it was not committed: it is now")
            break
        except (UsageError, IntegrityError, NotFound) as error:
            log.warning(f"The collective checkpoint {reference['key']} was not committed: {error}")
    return await agreement.read_damaged(store, task.pathspec)


async def _is_complete(store: Store, reference: dict[str, Any], deadline: float) -> bool:
    """Whether all shards are in the store; what those ranks have saved who did not die may still be on its way."""
    pauses = _pauses()
    while missing := await agreement.missing_ranks(store, reference):
        outcome = await agreement.read_outcome(store, reference)
        gone = await agreement.gone_ranks(store, reference)
        if gone.intersection(missing) or outcome is not None or time.monotonic() >= deadline:
            return not await agreement.missing_ranks(store, reference)
        await asyncio.sleep(pauses.failed(time.monotonic()))
    return True


def _follow(checkpointer: Checkpointer, start: int, path: str, shard: str) -> dict[str, Any] | None:
    task, limit_s = checkpointer.task, checkpointer.config.gang_start_timeout_s
    reference = checkpointer.tracker.run(lambda store: _decision(store, task, start, limit_s))
    if reference is None:
        return None
    try:
        return checkpointer.load(reference, path, shard=shard)
    except (IntegrityError, NotFound) as error:
        # Node 0 has loaded it, but perhaps only other files of it. The next attempt begins with an older checkpoint.
        why = str(error)
        checkpointer.tracker.run(lambda store: agreement.put_damaged(store, task.pathspec, reference["key"], why))
        raise


async def _decision(store: Store, task: layout.TaskInfo, start: int, limit_s: float) -> dict[str, Any] | None:
    key = layout.decision_key(task.pathspec, task.attempt, start)
    deadline, pauses = time.monotonic() + limit_s, _pauses()
    while True:
        try:
            found: dict[str, Any] | None = (await read_json(store, key))["reference"]
            return found
        except NotFound:
            if time.monotonic() >= deadline:
                raise WaitTimeout(
                    f"Node 0 of the gang has not said within {limit_s:g} s what attempt {task.attempt} begins with",
                    where=key,
                    hint="See its log; METAFLOW_ASYNC_CKPT_GANG_START_TIMEOUT_S is the limit",
                ) from None
        now = time.monotonic()
        await asyncio.sleep(min(pauses.failed(now), max(deadline - now, 0)))


def _pauses() -> Backoff:
    """Between two looks into the store."""
    return Backoff(0, GATHER_FIRST_S, GATHER_LAST_S)

"""Which start of an attempt this is: agreed on through the store alone.

An attempt may begin more than once under one number: a workflow engine runs a step again as attempt 0, a Job makes its
pod anew, somebody starts it by hand. One may begin while another still runs. Each start has a number, from 0, and its
versions count from ``start * layout.START_STEP`` on: no two starts write under the same key, and the versions' order
says which checkpoint is newer.

Whoever starts lists what the store has of its attempt (checkpoints and claims, in one folder), and *claims* the next
number by making an object that nobody has made before (``layout.claim_key``). Where a store cannot refuse to write
over an object, it makes one of its own beside it and lists again: who sees somebody else's goes on to a later number.
At most one sees nobody, as everybody writes before looking.

The nodes of a gang are one start: node 0 claims it, and the others join what it has claimed. Where there is nothing at
all, it will claim 0, and they need not wait for that.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import layout
from ..errors import IntegrityError, StoreError, TransientStoreError, UsageError
from ..manifest import dump
from ..stores.base import Store
from ..stores.catalog import read_fields
from ..system.crash import crash_point

#: So many numbers are tried, one after the other, where others take them in the same moment.
_TRIES = 64

#: The mark of a gang's node that has joined begins with this.
_NODE = "node"

#: Who makes a claim (``agent.starts.who_am_i``), with a ``token`` by which its maker knows it again.
Claimant = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A number that nobody else has.

    Parameters
    ----------
    start : int
        The number.
    first : bool
        Nobody has begun this attempt before, as far as the store knows.
    why : str
        What people should know of this start; empty: nothing.
    """

    start: int
    first: bool
    why: str = ""


@dataclass
class _Known:
    """What the store has of an attempt: the starts that have checkpoints, the claims (start → marks), and which nodes
    of a gang have joined a start; and what people should know where it does not say.
    """

    saved: set[int] = field(default_factory=set)
    claims: dict[int, set[str]] = field(default_factory=dict)
    joined: set[tuple[int, int]] = field(default_factory=set)
    why: str = ""

    @property
    def next(self) -> int:
        return max([*self.saved, *self.claims], default=-1) + 1


async def claim(store: Store, task: layout.TaskInfo, who: Claimant) -> Claim:
    """Claim the next start of an attempt; one whose claim this token has made already, and after which nobody came, is
    kept.

    Raises
    ------
    UsageError
        The attempt has begun so often that there are no numbers left.
    TransientStoreError
        The store is out of reach; or this is a node of a gang, and the first one has not claimed yet.
    """
    known = await _known(store, task)
    if task.node:
        return await _join(store, task, who, known)
    newest = known.next - 1
    if newest in known.claims and await _is_mine(store, task, newest, known.claims[newest], who):
        return Claim(newest, first=not newest and not known.saved, why=known.why)
    start = known.next
    for attempt in range(_TRIES):
        if start >= task.most_starts:
            raise UsageError(
                f"Attempt {task.attempt} has begun {start} times, and there are no versions left for one more",
                where=store.url(task.task_folder), hint="Run the step as another attempt, or in another run",
            )  # fmt: skip
        crash_point("claims:before-claim")
        if await _take(store, task, start, who):
            crash_point("claims:after-claim")
            first = not start
            return Claim(start, first, why=known.why if first else await _others(store, task, start, start - 1))
        start += 1 + secrets.randbelow(1 << min(attempt, 8))
    raise TransientStoreError(f"Others begin attempt {task.attempt} all the time", where=store.url(task.task_folder))


async def note(store: Store, task: layout.TaskInfo, start: int, who: Claimant) -> Claim:
    """Claim a number that was chosen without asking the store, so that later starts count on from it. The claim says
    what the store had.
    """
    known = await _known(store, task)
    await store.put_if(layout.claim_key(task.pathspec, task.attempt, start), dump(dict(who)), None)
    others = known.saved - {start}
    for other in known.claims.keys() - {start}:
        # A claim may be of this very start: the task may have stopped waiting just before it was made.
        if not await _is_mine(store, task, other, known.claims[other], who):
            others.add(other)
    return Claim(start, first=not others, why=await _others(store, task, start, max(others)) if others else "")


async def _known(store: Store, task: layout.TaskInfo) -> _Known:
    """What the store has. Who may write and not list can still claim; other clients' checkpoints are not seen then."""
    known, folder = _Known(), task.task_folder
    try:
        async for entry in store.list(folder, f"{task.attempt}."):
            name = entry.key[len(folder) + 1 :]
            if (claimed := layout.claim_parts(name)) is not None:
                _, start, mark = claimed
                if mark.startswith(_NODE):
                    known.joined.add((start, int(mark.removeprefix(_NODE))))
                else:
                    known.claims.setdefault(start, set()).add(mark)
            elif (parts := layout.metadata_name_parts(folder, name)) is not None:
                known.saved.add(task.start_of(parts[2]))
    except TransientStoreError:
        raise
    except StoreError as error:
        why = (
            f"What the store has of attempt {task.attempt} already cannot be listed, so what an earlier start of it "
            f"left is not seen unless it was this package's: {error}"
        )
        return _Known(why=why)
    return known


async def _take(store: Store, task: layout.TaskInfo, start: int, who: Claimant) -> bool:
    """Claim a number; False if somebody else has.

    Where the store refuses to write the claim, it will refuse checkpoints as well: the number is used without one.
    """
    key = layout.claim_key(task.pathspec, task.attempt, start)
    try:
        if not await store.put_if(key, dump(dict(who)), None):
            # Perhaps by an earlier try of ours, whose answer was lost.
            return bool((await read_fields(store, key)).get("token") == who["token"])
        if store.capabilities.create_only:
            return True
        await store.put_bytes(layout.claim_key(task.pathspec, task.attempt, start, who["token"]), dump(dict(who)))
        return (await _known(store, task)).claims.get(start, set()) <= {"", who["token"]}
    except (TransientStoreError, IntegrityError):
        raise
    except StoreError:
        return True


async def _is_mine(store: Store, task: layout.TaskInfo, start: int, marks: set[str], who: Claimant) -> bool:
    if marks - {""}:
        return marks - {""} == {who["token"]}
    claimed = await read_fields(store, layout.claim_key(task.pathspec, task.attempt, start))
    return bool(claimed.get("token") == who["token"])


async def _join(store: Store, task: layout.TaskInfo, who: Claimant, known: _Known) -> Claim:
    """Join the start that node 0 has claimed. If this node has begun that one before, it is over, and node 0 will claim
    another one.
    """
    start = max(known.claims, default=0 if not known.saved else -1)
    if start >= 0:
        key = functools.partial(layout.claim_key, task.pathspec, task.attempt, start)
        joined, claimant = key(f"{_NODE}{task.node}"), await read_fields(store, key())
        # A node that joins the first start begins with nothing, whatever the other nodes have saved by now. A node that
        # has begun this start before has something to resume from.
        first = not start
        if (start, task.node) in known.joined:
            before = await read_fields(store, joined)
            mine = before.get("token") == who["token"]
            first = first and (not known.saved or before.get("pid") == who["pid"])
        else:
            # Where both nodes are processes of one machine, ours must have been started by the one that has claimed.
            is_elsewhere = not claimant or who["boot"] != claimant.get("boot")
            mine = is_elsewhere or who["gang_leader_pid"] in (who["pid"], claimant.get("pid"))
            if mine:
                with contextlib.suppress(UsageError):
                    await store.put_bytes(joined, dump(dict(who)))
        if mine:
            return Claim(start, first=first)
    raise TransientStoreError(
        f"Node 0 of the gang has not begun attempt {task.attempt} yet", where=store.url(task.task_folder)
    )


async def _others(store: Store, task: layout.TaskInfo, start: int, other: int) -> str:
    """Who has begun the attempt before, for people: the one with the number ``other``."""
    found = await read_fields(store, layout.claim_key(task.pathspec, task.attempt, other))
    by = ""
    if all(name in found for name in ("host", "pid", "at")):
        by = f", on {found['host']} (process {found['pid']}) at {found['at']}"
    return (
        f"Attempt {task.attempt} of {task.pathspec} was begun before{by}. This start keeps its own checkpoints: their "
        f"versions count from {start * layout.START_STEP * task.nodes} on, and nothing of the other is overwritten"
    )

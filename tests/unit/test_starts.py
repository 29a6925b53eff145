"""Which start of an attempt somebody is, agreed on through a store."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import pytest

from async_ckpt import layout
from async_ckpt.agent.child import Child
from async_ckpt.agent.starts import Starts, who_am_i
from async_ckpt.errors import StoreError, TransientStoreError, UsageError
from async_ckpt.ranks import starts
from async_ckpt.ranks.starts import Claim
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import Capabilities, Store, StoreSpec
from async_ckpt.system.clock import REAL_CLOCK
from harness.stores.memory import MemoryStore
from harness.tasks.task import TASK

T = TypeVar("T")

#: A gang's.
FIRST, SECOND = (dataclasses.replace(TASK, node=node, nodes=2) for node in range(2))


def run(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    async def call() -> T:
        with anyio.fail_after(60):
            return await function(*arguments)

    return anyio.run(call)


def who(token: str, pid: int = 1, gang_leader_pid: int = 0) -> dict[str, Any]:
    return who_am_i(pid, gang_leader_pid, token)


def claim(store: Store, token: str, task: layout.TaskInfo = TASK, **about: int) -> Claim:
    return run(starts.claim, store, task, who(token, **about))


class ForgetfulStore(MemoryStore):
    """A store that knows no conditions; each call takes a moment in which others have their turn."""

    capabilities = Capabilities()

    async def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        await self.put_bytes(key, data)
        return True

    async def put_bytes(self, key: str, data: bytes) -> None:
        await anyio.sleep(0)
        await super().put_bytes(key, data)
        await anyio.sleep(0)


def test_the_first_start_has_number_0_and_costs_one_listing_and_one_write() -> None:
    store = MemoryStore()
    assert claim(store, "a") == Claim(0, first=True)
    assert [operation for operation, _ in store.asked] == ["list", "put"]


def test_a_listing_is_only_of_the_attempt() -> None:
    store = MemoryStore()
    listed: list[str] = []
    original = store.list
    store.list = lambda prefix, beginning="": listed.append(beginning) or original(prefix, beginning)  # type: ignore
    claim(store, "a", dataclasses.replace(TASK, attempt=3))
    assert listed == ["3."]


def test_each_start_has_a_later_number_and_says_who_came_before() -> None:
    store = MemoryStore()
    assert claim(store, "a", pid=4711).first
    second = claim(store, "b")
    assert (second.start, second.first) == (1, False)
    assert "process 4711" in second.why
    assert str(layout.START_STEP) in second.why
    assert claim(store, "c").start == 2
    assert claim(store, "d", dataclasses.replace(TASK, attempt=1)) == Claim(0, first=True), "another attempt"


@pytest.mark.parametrize("number", [0, 2])
def test_whoever_made_the_newest_claim_keeps_it(number: int) -> None:
    store = MemoryStore()
    for other in range(number):
        claim(store, f"{other}")
    assert claim(store, "a").start == number
    again = claim(store, "a")
    assert (again.start, again.first) == (number, number == 0)
    assert claim(store, "b").start == number + 1
    assert claim(store, "a").start == number + 2, "somebody has begun since: what is newer must have higher versions"


@pytest.mark.parametrize("version", [0, 17, 3 * layout.START_STEP + 5])
def test_checkpoints_that_nobody_has_claimed_count_as_a_start(version: int) -> None:
    """Those of metaflow-checkpoint, of earlier versions, and of who did not wait for the store."""
    store = MemoryStore()
    store.objects[f"{TASK.task_folder}/0.some.name.{version}.metadata"] = b"{}"
    found = claim(store, "a")
    assert (found.start, found.first) == (version // layout.START_STEP + 1, False)


def test_who_may_not_list_counts_on_by_trying() -> None:
    store = MemoryStore()

    def refuse(operation: str, key: str) -> None:
        if operation == "list":
            raise StoreError("AccessDenied")

    store.before = refuse
    first, second = claim(store, "a"), claim(store, "b")
    assert (first.start, second.start) == (0, 1) or second.start > 0
    assert "cannot be listed" in first.why


def test_an_outage_is_none_of_its_answers() -> None:
    store = MemoryStore()

    def fail(operation: str, key: str) -> None:
        raise TransientStoreError("503")

    store.before = fail
    with pytest.raises(TransientStoreError):
        claim(store, "a")


def test_a_claim_whose_answer_was_lost_is_known_again() -> None:
    store = MemoryStore()
    original, lost = store.put_if, iter([True])

    async def put_if(key: str, data: bytes, tag: str | None) -> bool:
        written = await original(key, data, tag)
        if next(lost, False):
            return await original(key, data, tag)  # As the retry after it.
        return written

    store.put_if = put_if  # type: ignore[method-assign]
    assert claim(store, "a").start == 0
    assert claim(store, "b").start == 1


@pytest.mark.parametrize("make", [MemoryStore, ForgetfulStore])
@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_of_many_at_once_each_has_a_number_of_its_own(make: type[MemoryStore], at_once: int) -> None:
    for _ in range(20):
        store, found = make(), list[int]()

        async def begin(number: int, store: Store = store, found: list[int] = found) -> None:
            found.append((await starts.claim(store, TASK, who(f"{number:x}"))).start)

        async def all_at_once(begin: Callable[[int], Awaitable[None]] = begin) -> None:
            async with anyio.create_task_group() as group:
                for number in range(at_once):
                    group.start_soon(begin, number)

        run(all_at_once)
        assert len(set(found)) == at_once, found


def test_in_a_store_without_conditions_one_whose_number_was_disputed_does_not_keep_it() -> None:
    store = ForgetfulStore()
    for token in ("a", "b"):  # Both have written, and died before they looked.
        store.objects[layout.claim_key(TASK.pathspec, 0, 0)] = json.dumps({"token": token}).encode()
        store.objects[layout.claim_key(TASK.pathspec, 0, 0, token)] = b"{}"
    assert claim(store, "b").start > 0


def test_numbers_come_to_an_end_with_an_error() -> None:
    store = MemoryStore()
    store.objects[layout.claim_key(TASK.pathspec, 0, TASK.most_starts - 1)] = b"{}"
    with pytest.raises(UsageError, match="no versions left"):
        claim(store, "a")
    last = TASK.version(TASK.most_starts * layout.START_STEP - 1)
    assert layout.parse_key(TASK.key("x", last)).version == last


def test_a_number_that_was_chosen_alone_is_noted_for_whoever_comes_later() -> None:
    store = MemoryStore()
    claim(store, "a")
    noted = run(starts.note, store, TASK, 70_000, who("b"))
    assert (noted.start, noted.first) == (70_000, False)
    assert noted.why
    assert run(starts.note, store, TASK, 70_000, who("b")).start == 70_000
    assert claim(store, "c").start == 70_001


def test_ones_own_claim_that_came_too_late_is_nobody_elses() -> None:
    store = MemoryStore()
    claim(store, "a")
    assert run(starts.note, store, TASK, 70_000, who("a")) == Claim(70_000, first=True)


# -- gangs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_the_nodes_of_a_gang_are_one_start_whoever_comes_first(order: tuple[int, ...]) -> None:
    store = MemoryStore()
    found = {node: claim(store, f"{node}", (FIRST, SECOND)[node]) for node in order}
    assert found[0] == found[1] == Claim(0, first=True)


def test_a_node_that_joins_the_first_start_late_begins_with_nothing_although_another_has_saved() -> None:
    """Nobody decides what a first start begins with: who waited for that would wait in vain."""
    store = MemoryStore()
    claim(store, "a", FIRST)
    store.objects[f"{TASK.task_folder}/0.some.name.0.metadata"] = b"{}"
    assert claim(store, "b", SECOND, pid=2) == Claim(0, first=True)
    assert claim(store, "b", SECOND, pid=2).first, "its agent asks again"
    assert not claim(store, "b", SECOND, pid=3).first, "it is begun again, and has something to go on from"


def test_the_next_start_of_a_gang_waits_for_its_first_node() -> None:
    store = MemoryStore()
    claim(store, "a", FIRST)
    claim(store, "b", SECOND)
    assert claim(store, "b", SECOND).start == 0, "its agent asks again"
    with pytest.raises(TransientStoreError, match="Node 0"):
        claim(store, "c", SECOND)
    assert claim(store, "d", FIRST).start == 1
    assert claim(store, "c", SECOND) == Claim(1, first=False)


def test_a_node_joins_no_start_of_another_gang_on_its_machine() -> None:
    store = MemoryStore()
    claim(store, "a", FIRST, pid=100)
    with pytest.raises(TransientStoreError):
        claim(store, "b", SECOND, pid=201, gang_leader_pid=200)
    claim(store, "c", FIRST, pid=200)
    assert claim(store, "b", SECOND, pid=201, gang_leader_pid=200).start == 1


def test_who_waits_for_a_store_that_fails_is_told_that_it_was_asked_also_between_two_tries(tmp_path: Path) -> None:
    """It is waited for as long as one that is silent: only a store that nobody has asked yet is not to blame."""
    orders: list[dict[str, Any]] = []
    uploader = types.SimpleNamespace(ensure=lambda: True, tell=orders.append, has_spoken=True)
    spool = Spool.create(str(tmp_path), TASK, StoreSpec("local", "/nowhere"))
    asking = Starts(spool, cast(Child, uploader), orders.append, REAL_CLOCK)
    asking.begin(TASK.attempt, 1, 0)
    waiting = {"start": None, "why": "", "asked": False}
    assert asking.answer(TASK.attempt, late=True) == waiting
    asking.tick(0)
    assert asking.answer(TASK.attempt, late=True) == waiting | {"asked": True}
    asking.on_message({"attempt": TASK.attempt, "transient": True, "why": "out of reach"})
    assert asking.answer(TASK.attempt, late=True) == waiting | {"asked": True}
    assert len(orders) == 1

"""Short versions of ``stress.retention``."""

from __future__ import annotations

import functools
from pathlib import Path

import anyio
import pytest

from async_ckpt.stores import open_store
from async_ckpt.stores.base import Store, StoreSpec
from harness.kills.removers import HOW, kill_removers
from harness.kills.retention_lives import CONFIG, live
from harness.stores.memory import MemoryStore
from tests.spread import first_of


@pytest.mark.parametrize("place", ["memory", "local"])
@pytest.mark.parametrize("seed", first_of(range(20)))
def test_nothing_goes_that_must_stay_and_nothing_stays_that_no_rule_keeps(
    tmp_path: Path, place: str, seed: int
) -> None:
    store: Store = MemoryStore() if place == "memory" else open_store(StoreSpec("local", str(tmp_path)), CONFIG)
    lives = anyio.run(live, store, seed, 300 if place == "memory" else 100)
    assert lives.wrong == []
    assert lives.done["killed"] > 0


@pytest.mark.parametrize("seed", first_of(range(5)))
def test_whoever_removes_may_be_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    found = kill_removers(functools.partial(open_store, StoreSpec("local", str(tmp_path)), CONFIG), 15, seed)
    assert found.wrong == []
    assert set(found.by) <= set(HOW)

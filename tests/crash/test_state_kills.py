"""A few rounds of ``python -m stress.state_kills``."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.kills.rank_kills import RankRound
from harness.kills.state_kills import RANDOM, StateRound


@pytest.mark.long
@pytest.mark.parametrize(("victim", "moment"), [("all at once", RANDOM), ("task", "state:linked")])
def test_whatever_is_killed_each_state_that_was_promised_is_stored_and_nothing_is_left(
    tmp_path: Path, victim: str, moment: str
) -> None:
    store = tmp_path / "store"
    found = StateRound(tmp_path, StoreSpec("local", str(store)), store, victim, moment, 1, kills=2).run()
    assert found.wrong == []
    assert found.committed >= found.promised > 4


@pytest.mark.parametrize(
    ("victim", "moment"),
    [("a rank and the agent", "state:admitted"), pytest.param("all ranks", RANDOM, marks=pytest.mark.long)],
)
def test_ranks_that_are_killed_begin_with_the_newest_that_all_had_saved(
    tmp_path: Path, victim: str, moment: str
) -> None:
    store = tmp_path / "store"
    found = RankRound(tmp_path, StoreSpec("local", str(store)), store, victim, moment, 1, kills=2).run()
    assert found.wrong == []
    assert found.kills.total() >= 2
    assert found.committed >= found.promised >= 2

"""A few rounds of ``python -m stress.state_kills``."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.stores.base import StoreSpec
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

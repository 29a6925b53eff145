"""Ranks decide alike whether to save, and none of them hangs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from async_ckpt.errors import WaitTimeout
from async_ckpt.ranks.decisions import _RING_LENGTH, Decisions
from async_ckpt.system.clock import REAL_CLOCK
from harness.common.clock import StillClock


def ranks(folder: Path, count: int, limit_s: float = 60.0) -> list[Decisions]:
    return [Decisions(str(folder / "due"), rank, StillClock(), limit_s) for rank in range(count)]


def test_what_rank_0_decides_all_ranks_do_in_their_next_call_in_whatever_order_they_come(tmp_path: Path) -> None:
    group = ranks(tmp_path, 3)
    for call in range(1, 3 * _RING_LENGTH):
        order = group if call % 2 else group[::-1]
        found = [rank.next(lambda call=call: call % 2 == 1) for rank in order]
        assert found == [call > 1 and call % 2 == 0] * 3


def test_a_rank_that_is_far_behind_saves_in_the_same_calls(tmp_path: Path) -> None:
    first, second = ranks(tmp_path, 2)
    saves = [call for call in range(1, 1001) if first.next(lambda call=call: call % 10 == 0)]
    assert saves == list(range(11, 1001, 10))
    assert [call for call in range(1, 1001) if second.next(lambda: True)] == saves


def test_a_rank_that_comes_first_makes_the_file_and_one_that_is_ahead_waits_for_rank_0(tmp_path: Path) -> None:
    first = Decisions(str(tmp_path / "due"), 0, REAL_CLOCK, 60)
    second = Decisions(str(tmp_path / "due"), 1, REAL_CLOCK, 60)
    found: list[bool] = []
    ahead = threading.Thread(target=lambda: found.extend(second.next(lambda: False) for _ in range(100)))
    ahead.start()
    same = [first.next(lambda call=call: call == 50) for call in range(100)]
    ahead.join(60)
    assert found == same
    assert sum(found) == 1


def test_a_rank_that_is_left_alone_gives_up_and_says_why(tmp_path: Path) -> None:
    _, second = ranks(tmp_path, 2, limit_s=5)
    assert not second.next(lambda: True)
    with pytest.raises(
        WaitTimeout, match=r"Rank 1 has asked 2 times whether to save, and rank 0 only 0 times after 5 s"
    ):
        second.next(lambda: True)

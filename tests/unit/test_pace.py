"""How much is trusted to be copied in time."""

from __future__ import annotations

from async_ckpt.agent.pace import Pace

GB = 10**9


def test_a_disk_that_was_not_seen_yet_is_taken_for_a_slow_one() -> None:
    pace = Pace()
    assert pace.bytes_per_s == 0
    assert pace.possible(20) == 2 * GB


def test_what_goes_no_further_than_memory_says_nothing() -> None:
    pace = Pace()
    pace.add(100_000_000, 0.01)
    pace.add(10**12, 0.0)
    assert pace.bytes_per_s == 0


def test_a_slow_disk_is_known_for_one_after_its_first_copy() -> None:
    pace = Pace()
    pace.add(50_000_000, 5.0)
    assert pace.bytes_per_s == 10_000_000
    assert pace.possible(20) == GB // 5


def test_a_fast_disk_is_trusted_with_a_few_times_what_it_was_seen_to_copy() -> None:
    pace = Pace()
    pace.add(GB, 0.5)
    assert pace.possible(20) == 4 * GB
    pace.add(20 * GB, 10.0)
    assert pace.possible(20) == 40 * GB


def test_the_newest_copies_count_most() -> None:
    pace = Pace()
    pace.add(GB, 1.0)
    for _ in range(10):
        pace.add(GB, 10.0)
    assert pace.bytes_per_s < 110_000_000

"""How much is trusted to be copied in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.capture import copy_speed
from async_ckpt.capture.copy_speed import CopySpeed

GB = 10**9


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 GB nothing goes into memory alone."""
    monkeypatch.setattr(copy_speed, "_absorbed_bytes", lambda: GB)


def test_a_disk_that_was_not_seen_yet_is_taken_for_a_slow_one() -> None:
    pace = CopySpeed()
    assert pace.bytes_per_s == 0
    assert pace.possible(20) == 2 * GB


def test_what_goes_no_further_than_memory_says_nothing() -> None:
    pace = CopySpeed()
    pace.add(100_000_000, 0.01)
    pace.add(10**12, 0.0)
    assert pace.bytes_per_s == 0


def test_a_slow_disk_is_known_for_one_after_its_first_copy() -> None:
    pace = CopySpeed()
    pace.add(50_000_000, 5.0)
    assert pace.bytes_per_s == 10_000_000
    assert pace.possible(20) == GB // 5


def test_a_fast_disk_is_trusted_with_a_few_times_what_it_was_seen_to_copy() -> None:
    pace = CopySpeed()
    pace.add(GB, 0.5)
    assert pace.possible(20) == 4 * GB
    pace.add(20 * GB, 10.0)
    assert pace.possible(20) == 40 * GB


def test_the_newest_copies_count_most() -> None:
    pace = CopySpeed()
    pace.add(GB, 1.0)
    for _ in range(10):
        pace.add(GB, 10.0)
    assert pace.bytes_per_s < 110_000_000


def test_a_copy_that_went_into_memory_is_no_reason_to_trust_a_disk_with_more_than_goes_there() -> None:
    pace = CopySpeed()
    pace.add(GB // 2, 0.1)
    assert pace.possible(20) == 2 * GB  # As for a disk that was never seen.
    assert pace.possible(5) == GB


def test_savers_and_agents_know_of_each_others_copies(tmp_path: Path) -> None:
    path = str(tmp_path / "pace")
    saver, agent = CopySpeed(path), CopySpeed(path)
    assert agent.safe_bytes == int(100e6 * copy_speed.BREAK_TIME_S)
    saver.add(2 * GB, 20.0)
    assert agent.bytes_per_s == 100_000_000
    assert agent.safe_bytes < 100e6 * copy_speed.BREAK_TIME_S
    agent.add(2 * GB, 10.0)
    assert CopySpeed(path).bytes_per_s == saver.bytes_per_s == 150_000_000


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[null, 2]", "nonsense"])
def test_whatever_is_wrong_with_what_was_remembered_it_is_learned_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "pace").write_text(text)
    pace = CopySpeed(str(tmp_path / "pace"))
    assert pace.bytes_per_s == 0
    pace.add(GB, 10.0)
    assert CopySpeed(str(tmp_path / "pace")).bytes_per_s == 100_000_000

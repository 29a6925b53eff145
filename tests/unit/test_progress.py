"""When the lines of progress come."""

from __future__ import annotations

import pytest

from async_ckpt.config import PROGRESS_MOST, Config
from async_ckpt.task.progress import ProgressLines
from harness.common import log_lines
from harness.common.clock import StillClock


def _times_of_lines(piece_s: float, until_s: float) -> list[float]:
    """When lines come to somebody who waits in pieces: at most ``piece_s`` seconds, and not beyond the next line."""
    clock, times = StillClock(), list[float]()
    began, progress = clock.now, ProgressLines(Config(progress_s=5.0), clock)
    with log_lines.collected() as lines:
        while clock.now - began < until_s:
            clock.sleep(min(piece_s, progress.due_in_s))
            progress.say("how it stands")
            if len(lines) > len(times):
                times.append(clock.now - began)
    return times


@pytest.mark.parametrize("piece_s", [5.0, 3.0, 1000.0])
def test_pauses_between_lines_grow_by_half_up_to_a_limit(piece_s: float) -> None:
    times = _times_of_lines(piece_s, 600.0)
    pauses = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert pauses[:5] == [5.0, 7.5, 11.25, 16.875, 25.3125]
    assert pauses[7:] == [PROGRESS_MOST * 5.0] * len(pauses[7:])
    assert len(pauses) > 9


def test_a_line_that_is_late_is_due_now_and_not_before() -> None:
    clock = StillClock()
    progress = ProgressLines(Config(progress_s=5.0), clock)
    assert progress.due_in_s == 5.0
    clock.sleep(9.0)
    assert progress.due_in_s == 0.0
    with log_lines.collected() as lines:
        progress.say("first")
        progress.say("too early")
    assert (lines, progress.due_in_s) == (["first"], 7.5)

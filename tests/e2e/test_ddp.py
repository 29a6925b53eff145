"""A real torchrun trains a real model on two ranks: one that was killed and resumed is the same, float for float."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from harness.flow_runs import ddp
from harness.flow_runs.metaflow_env import Workspace

STEPS, EVERY = 14, 2


@pytest.mark.long
@pytest.mark.skipif(bool(ddp.MISSING), reason=ddp.MISSING or "-")
@pytest.mark.timeout(600)
def test_a_training_that_was_killed_and_resumed_has_the_losses_of_one_that_was_not(
    local: Workspace, tmp_path: Path
) -> None:
    whole = ddp.train(local, tmp_path / "whole", steps=STEPS, every=EVERY)
    assert whole.resumed_at == [0]
    assert len(whole.lines) == ddp.RANKS * STEPS
    assert len(set(whole.losses[0] + whole.losses[1])) == ddp.RANKS * STEPS, "each rank has data of its own, and learns"
    assert whole.weights[0] == whole.weights[1], "both ranks have the same model"

    # Both have saved step 4, rank 0 may have saved 6, and rank 1 never does. Then both have saved 8, and 9 is lost.
    kills = [ddp.Kill(1, 6, "before-save"), ddp.Kill(0, 10, "forward")]
    killed = ddp.train(local, tmp_path / "killed", kills, steps=STEPS, every=EVERY)
    assert killed.resumed_at == [0, 4, 8], killed.output
    assert killed.losses == whole.losses
    assert killed.weights == whole.weights
    taken = {(line.attempt, line.rank, line.step) for line in killed.lines}
    assert taken >= {(attempt, 1, 6) for attempt in (0, 1)} | {(attempt, 0, 9) for attempt in (1, 2)}, "taken again"
    assert ddp.largest_difference(killed, whole) == 0
    local.assert_clean()


def test_the_comparison_sees_what_differs() -> None:
    lines = [ddp.Line(attempt=0, rank=0, step=1, loss=1.0), ddp.Line(attempt=0, rank=0, step=2, loss=0.5)]
    one = ddp.Training([0], [[1.0, 0.5]], ["a"], lines)
    assert ddp.largest_difference(one, one) == 0
    least = math.nextafter(0.5, 1)
    again = ddp.Line(attempt=1, rank=0, step=2, loss=least)
    for other in (replace(one, losses=[[1.0, least]]), replace(one, lines=[*lines, again])):
        assert ddp.largest_difference(other, one) == least - 0.5
    for bad in (
        replace(one, losses=[[1.0]]),
        replace(one, lines=lines[:1]),
        replace(one, lines=[*lines, replace(again, rank=1)]),
        replace(one, losses=[[math.nan, 0.5]]),
        replace(one, lines=[*lines, replace(again, loss=math.nan)]),
    ):
        assert ddp.largest_difference(bad, one) == math.inf

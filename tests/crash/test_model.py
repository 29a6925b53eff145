"""A few random lives of ``python -m stress.model``, always the same ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from harness.tasks.model import Model


@pytest.mark.parametrize("steps", [15, pytest.param(60, marks=pytest.mark.long)])
def test_whatever_happens_to_a_task_nothing_is_lost_torn_or_silent(steps: int) -> None:
    before = Model.figures["committed"]
    plan = settings(
        max_examples=10, stateful_step_count=steps, derandomize=True, deadline=None, database=None, print_blob=False,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(Model, settings=plan)
    assert Model.figures["committed"] > before, "it is no test of anything if nothing is ever committed"

"""Foreach, nested foreach, and what a split's checkpoints belong to."""

from __future__ import annotations

import pytest

from harness.flow_runs.metaflow_env import Workspace


@pytest.mark.long
def test_each_split_of_a_nested_foreach_resumes_from_its_own_even_over_values_that_are_not_json(
    local: Workspace,
) -> None:
    run = local.run_flow("foreach_flow")
    tasks = run.tasks()
    outer = {task.artifacts["letter"]: task for task in tasks["outer"]}
    inner = {task.artifacts["name"]: task for task in tasks["inner"]}

    assert set(outer) == {"a", "b"}
    assert set(inner) == {"a0", "a1", "b0", "b1"}
    for name, task in {**outer, **inner}.items():
        assert task.artifacts["resumed"] == {"name": name, "epoch": 1}
        assert task.metadata_of("checkpoint-load-pathspec") == [task.pathspec]
        # The second attempt saved nothing, so what it resumed from is the task's latest.
        assert task.artifacts["_task_checkpoints"] == []
        assert task.artifacts["_task_latest_checkpoint"]["metadata"] == {"name": name}
    local.assert_clean()

"""@catch, @timeout, @retry that runs out, SystemExit: what was saved is in the store; the user's error is seen."""

from __future__ import annotations

from typing import Any

import pytest

from harness.flow_runs.metaflow_env import TaskResult, Workspace, wait_until
from harness.s3.gated_s3 import GatedS3

#: Newest first, of all attempts: list(task=...) alone lists the last one's.
_LISTING = """
import json, sys
from metaflow import Checkpoint, Task
def attempts(pathspec):
    return range(Task(pathspec, _namespace_check=False).current_attempt, -1, -1)
print(json.dumps([[c for n in attempts(p) for c in Checkpoint().list(task=p, attempt=n)] for p in sys.argv[1:]]))
"""


def listed(workspace: Workspace, *tasks: TaskResult) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = workspace.query(_LISTING, *(task.pathspec for task in tasks))
    return found


def test_what_was_saved_before_an_error_a_timeout_or_an_exit_is_in_the_store_and_the_error_is_the_users(
    local: Workspace,
) -> None:
    run = local.run_flow("trouble_flow")
    tasks = run.tasks()
    (join,) = tasks["join"]
    errors = join.artifacts["errors"]
    assert errors["exhausted"] == ["builtins.KeyError", '"the user\'s own error 1"']
    assert errors["slow"][0].endswith("TimeoutException")
    # SystemExit is no Exception to Metaflow: the attempt just fails.
    assert errors["leaves"][0].endswith("FailureHandledByCatch")

    names = ("exhausted", "slow", "leaves")
    committed = listed(local, *(tasks[name][0] for name in names))
    states = {name: [c["metadata"]["state"] for c in found] for name, found in zip(names, committed, strict=True)}
    assert states == {
        "exhausted": ["attempt 1", "attempt 0"],
        "slow": ["before the time-out"],
        "leaves": ["before sys.exit(3)"],
    }
    assert all(c["state"] == "COMMITTED" for found in committed for c in found)
    local.assert_clean()


@pytest.mark.long
def test_a_timeout_that_fires_during_the_flush_fails_the_attempt_but_not_the_upload(
    s3: Workspace, gate: GatedS3
) -> None:
    gate.close_gate("PUT,POST:hang:/artifacts/")
    flow = s3.start_flow("save_flow", env={"TIMEOUT_S": "6", "METAFLOW_ASYNC_CKPT_PROGRESS_S": "0.5"})
    wait_until(lambda: "left: 1 checkpoint" in flow.output, "the flush tells how much is left")
    wait_until(lambda: "timed out" in flow.output, "the time-out fires")
    # Now it is the best effort after the error that waits for the store, and no second time-out ends that.
    gate.open_gate()
    run = flow.finish()
    assert run.returncode != 0
    assert "@timeout:" in run.output
    assert "task_post_step" in run.output, "It fired before the flush"
    (start,) = run.tasks()["start"]
    assert [c["name"] for c in listed(s3, start)[0]] == ["model"]
    assert [c["attempt"] for c in start.artifacts["_task_checkpoints"]] == [0]
    s3.assert_clean()

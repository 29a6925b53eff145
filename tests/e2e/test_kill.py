"""SIGKILL of the task while the store does not answer: what ``save()`` returned for is not lost."""

from __future__ import annotations

import json
import re

import pytest

from harness.flow_runs.metaflow_env import Workspace, wait_until
from harness.s3.gated_s3 import GatedS3

_LIST = """
import json, sys
from metaflow import Checkpoint
print(json.dumps(Checkpoint().list(task=sys.argv[1], attempt=int(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    ("rule", "attempts"),
    [
        pytest.param("PUT,POST:hang", "8", marks=pytest.mark.long, id="store too slow"),
        pytest.param("PUT,POST,GET,HEAD:fail", "2", id="store gone"),
    ],
)
def test_a_retry_loads_the_last_admitted_save_though_it_never_reached_the_store(
    s3: Workspace, rule: str, attempts: str
) -> None:
    run = s3.run_flow("kill_flow", env={"RULE": rule, "METAFLOW_ASYNC_CKPT_STORE_ATTEMPTS": attempts})
    (task,) = run.tasks()["start"]
    found = task.artifacts

    assert found["loaded"] == "2"
    assert [value.rsplit("/", 1)[1].split(".", 1)[1] for value in task.metadata_of("checkpoint-load-key")] == [
        "0.mfchckpt.2"
    ]
    assert found["state_while_closed"] in ("ADMITTED", "UPLOADING")
    assert [(c["attempt"], c["metadata"]["count"]) for c in found["all"]] == [(1, 3), (0, 2), (0, 1), (0, 0)]
    assert found["loaded_by_reference"] == "1"
    # And in the end all of it is in the store.
    assert [c["metadata"]["count"] for c in s3.query(_LIST, task.pathspec, "0")] == [2, 1, 0]
    assert [c["metadata"]["count"] for c in s3.query(_LIST, task.pathspec, "1")] == [3]
    s3.assert_clean()


def test_without_a_retry_the_agent_alone_brings_everything_in_when_the_store_is_back(
    s3: Workspace, gate: GatedS3
) -> None:
    run = s3.run_flow("kill_flow", succeeds=False, env={"RULE": "PUT,POST:hang", "RETRIES": "0"})
    assert s3.agents(), "The agent outlives the task and the flow"
    records = [name for name in s3.spooled() if "/ready/" in name]
    assert len(records) == 3
    (spool,) = s3.spool_directories()
    pathspec = json.loads((spool / "spool.json").read_text())["task"]
    task = f"{run.pathspec}/start/{pathspec['task']}"
    assert {found["state"] for found in s3.query(_LIST, task, "0")} <= {"ADMITTED", "UPLOADING"}

    # A shell beside it sees what is left ...
    status = json.loads(s3.run_command(["async-ckpt", "status", "--json", "--spool", str(spool)]).stdout)
    assert status["pending"] == 3
    gate.open_gate()
    # ... and it goes by itself.
    wait_until(lambda: not s3.agents(), "the agent finishes and exits")
    assert [c["metadata"]["count"] for c in s3.query(_LIST, task, "0")] == [2, 1, 0]
    s3.assert_clean()


@pytest.mark.long
def test_ctrl_c_during_the_flush_ends_the_flow_and_the_agent_goes_on(s3: Workspace, gate: GatedS3) -> None:
    gate.close_gate("PUT,POST:hang")
    limits = {"METAFLOW_ASYNC_CKPT_PROGRESS_S": "0.5", "METAFLOW_ASYNC_CKPT_CLAIM_WAIT_S": "0.5"}
    flow = s3.start_flow("save_flow", env=limits)
    wait_until(lambda: "left: 1 checkpoint" in flow.output, "the task waits for the store, and says so")
    flow.interrupt()
    run = flow.finish()
    assert run.returncode != 0
    assert s3.agents()
    gate.open_gate()
    wait_until(lambda: not s3.agents(), "the agent finishes and exits")
    (found,) = s3.query(_LIST, f"{run.pathspec}/start/1", "0")
    assert found["name"] == "model"
    s3.assert_clean()


def test_a_task_that_is_told_to_end_brings_in_what_it_saved_first(local: Workspace) -> None:
    run = local.run_flow("terminated_flow")
    assert "SIGTERM: saved checkpoints are brought in for up to 29 s" in run.output
    assert "All that was saved is in the store" in run.output
    (task,) = run.tasks()["start"]
    assert task.artifacts["loaded"] == "4"
    assert [c["metadata"]["count"] for c in local.query(_LIST, task.pathspec, "0")] == [4, 3, 2, 1, 0]
    local.assert_clean()


@pytest.mark.long
def test_a_task_that_is_told_to_end_lives_no_longer_than_it_may(s3: Workspace, gate: GatedS3) -> None:
    gate.close_gate("PUT,POST:hang")
    limits = {"TERMINATION_GRACE_S": "2.5", "CLAIM_WAIT_S": "0.5"}
    flow = s3.start_flow("terminated_flow", env={f"METAFLOW_ASYNC_CKPT_{name}": text for name, text in limits.items()})
    # Nobody knows which start of the attempt this is, so versions count from some number on.
    not_stored = re.compile(r"Not in the store: 0\.mfchckpt\.\d+4, 0\.mfchckpt\.\d+3")
    wait_until(lambda: not_stored.search(flow.output), "the task gives up, and says what")
    gate.open_gate()
    run = flow.finish()
    assert run.returncode == 0, run.output
    first = (
        r"0\.mfchckpt\.\d+4 goes first(, beside it [^;]*)?; given up, unless there is time left over: 0\.mfchckpt\.\d+3"
    )
    assert re.search(first, run.output), run.output
    (task,) = run.tasks()["start"]
    assert task.artifacts["loaded"] == "4"
    s3.assert_clean()

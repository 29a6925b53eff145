"""An upload that failed for good fails the attempt and says which and why; a user's own error stays the visible one."""

from __future__ import annotations

import re

import pytest

from harness.flow_runs.metaflow_env import Workspace
from harness.s3.gated_s3 import GatedS3
from harness.tasks.task import wait_until

_NAMED = re.compile(r"1 checkpoint is not in the store: \d\.model\.\d \((?P<why>.*)\)")


@pytest.mark.long
def test_a_refused_upload_fails_the_attempt_and_names_the_checkpoint_and_the_reason(
    s3: Workspace, gate: GatedS3
) -> None:
    gate.close_gate("PUT,POST:refuse")
    run = s3.run_flow("save_flow", succeeds=False)
    found = _NAMED.search(run.output)
    assert found, run.output
    assert "AccessDenied" in found["why"]
    assert "s3://" in found["why"]
    # Nobody has it now but this machine's disk.
    assert [name for name in s3.spooled() if name.endswith("/ready/0.model.0.json")]


@pytest.mark.long
def test_after_a_refusal_a_retry_resumes_from_the_spool_and_brings_in_both(s3: Workspace, gate: GatedS3) -> None:
    """The first attempt's flush fails; then the way is free."""
    gate.close_gate("PUT,POST:refuse")
    flow = s3.start_flow("save_flow", env={"RETRIES": "1"})
    # Before the next attempt's uploader asks the store again, which it does at once.
    wait_until(lambda: _NAMED.search(flow.output), "the first attempt fails")
    gate.open_gate()
    run = flow.finish()
    assert run.returncode == 0, run.output
    assert _NAMED.search(run.output)
    (task,) = run.tasks()["start"]
    assert task.artifacts["loaded"].endswith("attempt 0")
    everything = s3.query(
        "import json, sys; from metaflow import Checkpoint; "
        "print(json.dumps([c for n in (1, 0) for c in Checkpoint().list(task=sys.argv[1], attempt=n)]))",
        task.pathspec,
    )
    # The failed attempt's own record was written when nothing was committed; the store knows better.
    assert [c["attempt"] for c in everything] == [1, 0]
    s3.assert_clean()


@pytest.mark.parametrize("raises", ["", "always"], ids=["step ends", "step raises"])
def test_a_store_that_cannot_be_written_to_fails_the_attempt_but_never_hides_the_users_error(
    local: Workspace, raises: str
) -> None:
    # The datastore's folder for checkpoints is a file.
    (local.store / ".metaflow").mkdir()
    (local.store / ".metaflow" / "mf.checkpoints").write_text("in the way")
    run = local.run_flow("save_flow", succeeds=False, env={"RAISES": raises})
    found = _NAMED.search(run.output)
    assert found, run.output
    assert str(local.store) in found["why"]
    headline = re.search(r"^.*\] @checkpoint:$", run.output, re.MULTILINE)
    if raises:
        assert "ValueError: The user's own error" in run.output
        assert "[@checkpoint] After the step's own error: 1 checkpoint is not in the store" in run.output
        assert headline is None, "It looks as if the checkpoint were what failed"
    else:
        assert headline


def test_a_flush_that_reaches_its_limit_fails_the_attempt_and_the_agent_goes_on(s3: Workspace, gate: GatedS3) -> None:
    gate.close_gate("PUT,POST:hang")
    settings = {"CKPT_OPTIONS": '{"flush_timeout": 1}', "METAFLOW_ASYNC_CKPT_CLAIM_WAIT_S": "0.5"}
    run = s3.run_flow("save_flow", succeeds=False, env=settings)
    assert re.search(r"1 checkpoint is not in the store: 0\.model\.\d+0: the limit of 1 s is over", run.output)
    gate.open_gate()
    s3.assert_clean()


@pytest.mark.long
def test_who_chooses_so_gets_a_line_in_the_log_instead_of_a_failed_attempt(s3: Workspace, gate: GatedS3) -> None:
    gate.close_gate("PUT,POST:refuse")
    run = s3.run_flow("save_flow", env={"CKPT_OPTIONS": '{"on_failure": "warn"}'})
    found = _NAMED.search(run.output)
    assert found, run.output
    assert "[@checkpoint] 1 checkpoint is not in the store" in run.output
    assert "the step will fail" not in run.output
    (task,) = run.tasks()["start"]
    assert task.artifacts["_task_checkpoints"] == []
    s3.assert_clean()

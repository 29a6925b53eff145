"""``run --with checkpoint``: Metaflow hands options over as text, at the start of the flow and again of each task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import FlowRun, Workspace


def seen(run: FlowRun) -> dict[str, dict[str, Any]]:
    return {step: tasks[0].artifacts["seen"] for step, tasks in run.tasks().items() if step in ("start", "work", "end")}


def run_id(run: FlowRun) -> str:
    return run.pathspec.split("/")[1]


def test_with_checkpoint_serves_steps_that_have_no_decorator(local: Workspace) -> None:
    found = seen(local.run_flow("undecorated_flow", "run", "--with", "checkpoint"))
    assert {step: (told["loaded"], told["format"]) for step, told in found.items()} == dict.fromkeys(
        ("start", "work", "end"), (None, "files")
    )
    assert {told["max_pending"] for told in found.values()} == {None}


@pytest.mark.long
def test_with_checkpoint_and_retry_resume_an_attempt_that_failed(local: Workspace) -> None:
    retry = "retry:minutes_between_retries=0"
    run = local.run_flow("undecorated_flow", "run", "--with", "checkpoint", "--with", retry, "--fails", "True")
    assert seen(run)["work"]["loaded"] == f"{run_id(run)} 0"
    assert seen(run)["start"]["loaded"] is None


def test_every_option_is_taken_as_text_and_works(local: Workspace) -> None:
    elsewhere = local.root / "elsewhere"
    spec = ",".join(
        [
            "load_policy=eager", "load_shard=all", f"temp_dir_root={elsewhere}", "show_card=True", "uploader=thread",
            "storage_format=tar", "snapshot=copy", "flush_timeout=60", "on_failure=warn", "on_backlog=supersede",
            "max_pending=3", "max_pending_bytes=1000000", "dangling_links=keep",
        ]
    )  # fmt: skip
    env = {"METAFLOW_ASYNC_CKPT_SPOOL_DIR": ""}
    first = local.run_flow("undecorated_flow", "run", "--with", f"checkpoint:{spec}", env=env)
    found = seen(local.run_flow("undecorated_flow", "run", "--with", f"checkpoint:{spec}", env=env))
    assert found["work"].pop("directory").startswith(str(elsewhere))
    assert found["work"] == {
        "loaded": f"{run_id(first)} 0", "format": "tar", "max_pending": "3", "max_pending_bytes": "1000000",
        "on_backlog": "supersede", "on_failure": "warn",
    }  # fmt: skip


@pytest.mark.long
def test_a_step_that_has_the_decorator_keeps_its_own_options(local: Workspace) -> None:
    found = seen(
        local.run_flow(
            "undecorated_flow", "run", "--with", "checkpoint:max_pending=3,on_failure=warn", env={"DECORATED": "1"}
        )
    )
    assert (found["work"]["format"], found["work"]["max_pending"], found["work"]["on_failure"]) == ("tar", "7", None)
    assert (found["start"]["format"], found["start"]["max_pending"], found["start"]["on_failure"]) == (
        "files", "3", "warn",
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("given", [None, "None", "NONE", "none"])
def test_a_load_policy_of_none_loads_nothing(local: Workspace, given: str | None) -> None:
    run = local.run_flow(
        "save_flow", env={"CKPT_OPTIONS": json.dumps({"load_policy": given}), "RETRIES": "1", "RAISES": "once"}
    )
    (task,) = run.tasks()["start"]
    assert (task.attempt, task.artifacts["loaded"]) == (1, None)


def test_an_option_that_is_wrong_refuses_the_flow_and_names_step_option_value_and_what_is_allowed(
    local: Workspace,
) -> None:
    run = local.run_flow("undecorated_flow", "run", "--with", "checkpoint:max_pending=x", succeeds=False)
    assert "Step end: max_pending='x' is not valid. It is a number of checkpoints, 0 for any number" in run.output
    assert "Traceback" not in run.output
    assert "Task is starting" not in run.output

"""What is loaded when a task starts: fresh, eager, none; by namespace and by run tag; in a resumed run."""

from __future__ import annotations

import sys

import pytest

from harness.flow_runs.metaflow_env import FlowRun, Workspace


def loaded_by(run: FlowRun) -> dict[str, str | None]:
    tasks = run.tasks()
    return {step: tasks[step][0].artifacts["loaded"] for step in ("fresh", "eager", "none", "last")}


def run_id(run: FlowRun) -> str:
    return run.pathspec.split("/")[1]


def test_fresh_loads_the_tasks_own_eager_the_newest_of_any_run_and_none_nothing(local: Workspace) -> None:
    first = local.run_flow("policy_flow", "run", "--fails", "True")
    assert loaded_by(first) == {"fresh": f"{run_id(first)} 0", "eager": None, "none": None, "last": None}

    second = local.run_flow("policy_flow")
    newest = f"{run_id(first)} 0"
    assert loaded_by(second) == {"fresh": None, "eager": newest, "none": None, "last": newest}
    (eager,) = second.tasks()["eager"]
    (pathspec,) = eager.metadata_of("checkpoint-load-pathspec")
    assert pathspec.startswith(f"{first.pathspec}/eager/")
    assert f"[pathspec] {pathspec}" in second.output


@pytest.mark.long
def test_a_run_tag_keeps_checkpoints_apart_and_together(local: Workspace) -> None:
    def run(*arguments: str, user: str = "tester") -> tuple[str, FlowRun]:
        done = local.run_flow(
            "save_flow", "run", *arguments, env={"CKPT_OPTIONS": '{"load_policy": "eager"}', "USER": user}
        )
        return f"{run_id(done)}, attempt 0", done

    def loaded(done: FlowRun) -> str:
        return next(line for line in done.output.splitlines() if "Loaded: " in line).partition("Loaded: ")[2]

    tag = ("--tag", "checkpoint:blue")
    untagged, _ = run()
    alone, done = run(*tag)
    assert loaded(done) == "None"
    assert "'checkpoint:blue'" in done.output
    # The tag decides, whoever the user is; and what has no tag is where it was.
    _, done = run(*tag, user="somebody-else")
    assert loaded(done) == alone
    _, done = run(user="somebody-else")
    assert loaded(done) == "None"
    _, done = run()
    assert loaded(done) == untagged


@pytest.mark.long
def test_a_resumed_run_goes_on_from_the_newest_of_the_failed_one_under_eager_and_from_nothing_under_fresh(
    local: Workspace,
) -> None:
    broken = local.run_flow("policy_flow", "run", "--breaks", "True", succeeds=False)
    resumed = local.run_flow("policy_flow", "resume", "last")
    assert loaded_by(resumed)["last"] == f"{run_id(broken)} 0"
    again = local.run_flow("policy_flow", "resume", "fresh", "--origin-run-id", run_id(broken))
    assert loaded_by(again)["fresh"] is None
    assert loaded_by(again)["last"] == f"{run_id(resumed)} 0"


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", ["ours", "metaflow-checkpoint"])
def test_eager_takes_what_was_saved_last_whatever_the_zones_of_the_machines(
    local: Workspace, peer_python: str, first: str
) -> None:
    options = {"CKPT_OPTIONS": '{"load_policy": "eager", "show_card": false}'}

    def run(zone: str, python: str = sys.executable) -> tuple[str, str]:
        """The text of what it saved, and its output."""
        done = local.run_flow("save_flow", python=python, env={**options, "TZ": zone})
        return f"{run_id(done)}, attempt 0", done.output

    run("Australia/Sydney", sys.executable if first == "ours" else peer_python)
    later, _ = run("UTC")
    still_later, output = run("America/Los_Angeles")
    assert f"Loaded: {later}" in output
    _, output = run("UTC")
    assert f"Loaded: {still_later}" in output

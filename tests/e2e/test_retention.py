"""Rules on the decorator, the commands that remove, and what stays whatever they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import FlowRun, Workspace, wait_until
from harness.s3.gated_s3 import GatedS3
from tests.e2e.test_card import card

_LIST = """
import json, sys
from metaflow import Checkpoint
found = Checkpoint().list(task=sys.argv[1], attempt="all")
print(json.dumps([[one.attempt, one.version_id, one.metadata] for one in found[::-1]]))
"""


def listed(workspace: Workspace, run: FlowRun) -> list[list[Any]]:
    """Attempt, version and metadata of what the task has in the store, when its agent has ended."""
    wait_until(lambda: not workspace.agents(), "the agent has ended")
    (task,) = run.tasks()["start"]
    found: list[list[Any]] = workspace.query(_LIST, task.pathspec)
    return found


def run_with(workspace: Workspace, rules: dict[str, Any], **env: str) -> FlowRun:
    return workspace.run_flow("retention_flow", env={"CKPT_OPTIONS": json.dumps(rules), **env})


def test_the_last_ones_stay_and_what_an_artifact_refers_to(workspace: Workspace) -> None:
    run = run_with(workspace, {"keep_last": 2})
    assert [version for _, version, _ in listed(workspace, run)] == [2, 6, 7]
    workspace.assert_clean()


def test_what_artifacts_refer_to_goes_where_that_is_asked_for(local: Workspace) -> None:
    run = run_with(local, {"keep_last": 1, "keep_referenced": False})
    assert [version for _, version, _ in listed(local, run)] == [7]


def test_annotations_come_into_the_store_and_decide_what_is_best(workspace: Workspace) -> None:
    run = run_with(workspace, {"keep_best": ["loss", "min", 2], "keep_referenced": False}, ANNOTATE="1")
    # 3 is the best, 4 as good as 2 and newer; 7 is what a retry would load.
    assert [(version, metadata["loss"]) for _, version, metadata in listed(workspace, run)] == [(3, 0), (4, 1), (7, 4)]


def test_a_number_that_nobody_saved_removes_nothing_and_is_said_once(local: Workspace) -> None:
    run = run_with(local, {"keep_best": "accuracy max 1"})
    assert [version for _, version, _ in listed(local, run)] == list(range(8))
    assert run.output.count("no checkpoint has the number 'accuracy'") == 1


def test_what_an_attempt_began_with_stays_until_the_next_one(local: Workspace) -> None:
    run = run_with(local, {"keep_last": 1, "keep_referenced": False}, RETRIES="1", RAISES="once", SAVES="3")
    assert run.tasks()["start"][0].artifacts["loaded"] is not None
    found = [(attempt, version) for attempt, version, _ in listed(local, run)]
    assert found[-1] == (1, max(version for _, version in found))
    assert (0, run.tasks()["start"][0].artifacts["loaded"]) in found
    assert len(found) == 2


def test_the_commands_show_first_and_remove_when_told(local: Workspace) -> None:
    run = local.run_flow("retention_flow", env={"SAVES": "5"})
    assert len(listed(local, run)) == 5
    retain = ["async-ckpt", "retain", "--flow", "RetentionFlow", "--keep-last", "1"]
    shown = local.run_command(retain).stdout
    assert "Nothing was removed" in shown
    assert len(listed(local, run)) == 5
    found = json.loads(local.run_command([*retain, "--yes", "--json"]).stdout)
    assert sorted(one["done"] for one in found) == ["referred to", "removed", "removed", "removed"]
    assert [version for _, version, _ in listed(local, run)] == [2, 4]
    local.run_command([*retain, "--yes", "--referenced"])
    assert [version for _, version, _ in listed(local, run)] == [4]
    refused = local.run_command(["async-ckpt", "retain", "--flow", "RetentionFlow"], check=False)
    assert refused.returncode == 2
    assert "There is no rule" in refused.stderr

    (task,) = run.tasks()["start"]
    key = json.loads(local.run_command(["async-ckpt", "list", "--task", task.pathspec, "--json"]).stdout)[0]["key"]
    refused = local.run_command(["async-ckpt", "delete", key], check=False)
    assert refused.returncode == 2
    assert "Add --yes" in refused.stderr
    assert local.run_command(["async-ckpt", "delete", "--yes", key]).stdout == "removed 1\n"
    assert local.run_command(["async-ckpt", "list", "--flow", "RetentionFlow"]).stdout == "no checkpoints\n"


def test_without_the_right_to_delete_all_stays_and_that_is_said(s3: Workspace, gate: GatedS3) -> None:
    gate.close_gate("DELETE:refuse")
    run = run_with(s3, {"keep_last": 1})
    assert [version for _, version, _ in listed(s3, run)] == list(range(8))
    # It is found out at the end of so short a step, when nobody reads the agent's lines any more.
    (said,) = [text for text in card(s3, run)[0]["errors"] if "are not to be kept cannot be removed" in text]
    assert said.endswith("Nothing more is removed")


def test_the_command_says_and_fails_where_nothing_may_be_removed(s3: Workspace, gate: GatedS3) -> None:
    run = run_with(s3, {}, SAVES="4")
    listed(s3, run)
    retain = ["async-ckpt", "retain", "--flow", "RetentionFlow", "--keep-last", "1", "--yes"]
    gate.close_gate("DELETE:refuse")
    refused = s3.run_command(retain, check=False)
    assert refused.returncode == 1
    assert "AccessDenied" in refused.stderr
    assert "2 checkpoints could not be removed, 0 were" in refused.stderr
    gate.open_gate()
    assert json.loads(s3.run_command([*retain, "--json"]).stdout)[0]["done"] == "removed"
    assert [version for _, version, _ in listed(s3, run)] == [2, 3]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"keep_last": -1}, "keep_last"),
        ({"keep_best": ["loss"]}, "keep_best"),
        ({"keep_best": ["loss", "least", 2]}, "neither min nor max"),
        ({"keep_every": "often"}, "keep_every"),
    ],
)
def test_rules_that_make_no_sense_are_refused_when_the_flow_starts(
    local: Workspace, rules: dict[str, Any], says: str
) -> None:
    run = local.run_flow("retention_flow", succeeds=False, env={"CKPT_OPTIONS": json.dumps(rules)})
    assert says in run.output
    assert "start/" not in run.output  # No task was begun.

"""The card of a task, as Metaflow's own clients find it, while the task runs and whatever becomes of it."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from async_ckpt.card.page import data_of
from async_ckpt.card.rows import Row, rows_of
from harness.flow_runs.metaflow_env import FlowRun, Workspace, wait_until
from harness.s3.gated_s3 import GatedS3

_CARDS = """
import json, sys
from metaflow.cards import get_cards
from metaflow.plugins.cards.exception import CardNotPresentException
try:
    print(json.dumps([[card.type, card.get()] for card in get_cards(sys.argv[1])]))
except CardNotPresentException:
    print("[]")
"""


@pytest.fixture
def local(local: Workspace) -> Workspace:
    """Metaflow writes cards below the working directory, and reads them beside the datastore: here the same place."""
    del local.env["METAFLOW_DATASTORE_SYSROOT_LOCAL"]
    return local


def cards(workspace: Workspace, pathspec: str) -> list[list[str]]:
    """Type and page of each card of a task."""
    found: list[list[str]] = workspace.query(_CARDS, pathspec)
    return found


def card(workspace: Workspace, run: FlowRun, step: str = "start") -> tuple[dict[str, Any], list[Row]]:
    """The data of the one card that a step's task has of its checkpoints, and its rows."""
    (task,) = run.tasks()[step]
    ((_, page),) = [found for found in cards(workspace, task.pathspec) if found[0] == "checkpoint"]
    data = data_of(page)
    return data, sorted(rows_of(data), key=lambda row: (row["attempt"], row["version"]))


def test_a_task_has_a_card_that_shows_what_it_saved(workspace: Workspace) -> None:
    run = workspace.run_flow("save_flow")
    data, (row,) = card(workspace, run)
    assert (data["state"], data["task"]["attempt"], data["loaded"]) == ("ended", 0, None)
    assert (row["name"], row["state"], row["metrics"]) == ("model", "COMMITTED", {"attempt": 0.0})
    assert row["size"] > 0
    assert 0 < row["blocked_s"] < 60
    assert 0 <= row["began_s"] <= row["uploaded_s"] <= row["durable_s"]
    assert row["sent"] == row["size"]
    (line,) = [line for line in run.output.splitlines() if "The step waited" in line]
    assert "Saved 1 checkpoint (" in line
    assert "all in the store, the last one" in line
    workspace.assert_clean()


def test_a_retry_goes_on_with_the_card_and_says_what_it_began_with(local: Workspace) -> None:
    run = local.run_flow("save_flow", env={"RETRIES": "1", "RAISES": "once"})
    data, rows = card(local, run)
    assert [(row["attempt"], row["state"]) for row in rows] == [(0, "COMMITTED"), (1, "COMMITTED")]
    assert (data["state"], data["task"]["attempt"]) == ("ended", 1)
    assert (data["loaded"]["name"], data["loaded"]["attempt"]) == ("model", 0)


def test_an_attempt_that_fails_is_shown_as_failed(local: Workspace) -> None:
    run = local.run_flow("save_flow", succeeds=False, env={"RAISES": "always"})
    wait_until(lambda: not local.agents(), "the agent has ended")
    data, rows = card(local, run)
    assert (data["state"], [row["state"] for row in rows]) == ("failed", ["COMMITTED"])


def test_after_a_kill_the_card_says_what_it_last_knew_and_the_agent_goes_on_with_it(
    s3: Workspace, gate: GatedS3
) -> None:
    run = s3.run_flow("kill_flow", succeeds=False, env={"RULE": "PUT,POST:hang", "RETRIES": "0"})
    gate.open_gate()
    wait_until(lambda: not s3.agents(), "the agent finishes and exits")
    data, rows = card(s3, run)
    assert data["state"] == "lost"
    assert [row["state"] for row in rows] == ["COMMITTED"] * 3


@pytest.mark.parametrize("how", ["option", "setting"])
def test_no_card_where_none_is_wanted(local: Workspace, how: str) -> None:
    given = {"CKPT_OPTIONS": '{"show_card": false}'} if how == "option" else {"METAFLOW_ASYNC_CKPT_CARD": "0"}
    run = local.run_flow("save_flow", env=given)
    (task,) = run.tasks()["start"]
    assert cards(local, task.pathspec) == []


def test_the_users_own_cards_are_as_they_would_be_without(local: Workspace) -> None:
    run = local.run_flow("own_card_flow")
    (task,) = run.tasks()["start"]
    found = dict(cards(local, task.pathspec))
    assert found.keys() == {"checkpoint", "blank"}
    texts = [base64.b64decode(text) for text in re.findall(r'"([A-Za-z0-9+/=]{200,})"', found["blank"])]
    assert any(b"The user's own words" in text for text in texts)


def test_a_store_of_cards_that_cannot_be_written_to_harms_no_checkpoint(local: Workspace) -> None:
    (local.cwd / ".metaflow").mkdir()
    (local.cwd / ".metaflow" / "mf.cards").touch()
    run = local.run_flow("retention_flow", env={"SAVES": "20"})
    assert "The card cannot be written" in run.output
    assert "all in the store" in run.output
    local.assert_clean()

"""Hugging Face's Trainer is killed, and what it computes is what it would have, float for float."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import Workspace
from harness.integrations.curves import Kill, Training, example, resumed_from, train

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


#: All that a task has saved, newest first.
_SAVED = """
import json, sys
from metaflow import Checkpoint
found = Checkpoint().list(task=sys.argv[1], attempt="all")
print(json.dumps([[one.attempt, one.metadata, one.state] for one in found]))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with ours, and the frameworks."""
    return find_or_make_with_ours()


def killed_at(line: int, name: str, python: str, base: Path) -> tuple[Training, int]:
    """Run an example to its end, and again, killed once at this step: that run, and the step that it resumed from."""
    whole = train(Workspace(base / "whole"), example(name), python)
    killed = train(Workspace(base / "killed"), example(name), python, [Kill(line)])
    (step,) = resumed_from(killed, whole)
    return killed, step


def test_transformers(python: str, tmp_path: Path) -> None:
    killed, step = killed_at(7, "transformers", python, tmp_path)
    assert step == 6
    # The Trainer keeps one, and removes each while the next is made: all of them are in the store.
    (task,) = killed.run.tasks()["start"]
    saved = killed.run.env.query(_SAVED, task.pathspec)
    assert [(attempt, metadata["checkpoint"]) for attempt, metadata, _ in saved] == [
        (1 if number > 6 else 0, f"checkpoint-{number}") for number in range(20, 0, -2)
    ]
    assert {state for *_, state in saved} == {"COMMITTED"}


def test_a_trainer_that_is_killed_in_its_own_save_goes_on_elsewhere_and_finds_its_best(
    python: str, local: Workspace
) -> None:
    run = local.run_flow("trainer_cases_flow", python=python, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    (task,), (end,) = run.tasks()["start"], run.tasks()["end"]
    found = task.artifacts
    assert (local.cwd / "out ä'\"" / "checkpoint-8" / "optimizer.pt").exists(), "it was killed after that"
    saved = [(name, metadata["checkpoint"], metadata["global_step"], state) for name, metadata, state in found["saved"]]
    assert [each[:3] for each in saved] == [("the best", f"checkpoint-{step}", step) for step in (10, 8, 6, 4, 2)]
    assert all(metadata["who"] == "me" and metadata["eval_loss"] > 0 for _, metadata, _ in found["saved"])
    assert not any("runtime" in key or "per_second" in key for key in found["saved"][0][1])
    assert (found["best"], found["is_best"]) == ("another/checkpoint-2", True)
    assert found["other"].startswith(
        "UsageError: What was loaded is no checkpoint of a Trainer: it has no trainer_state"
    )
    assert "transformers 5" in run.output
    assert run.output.count("was not tried with this package (4.0 to 4.1 were)") == 2, "once in each attempt"
    assert end.artifacts["outside"].startswith("UsageError: Nothing can be saved or resumed here")

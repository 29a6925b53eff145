"""LoRA is killed and goes on float for float, with the adapters of a checkpoint and the base that was saved once."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import Workspace
from harness.integrations.curves import Kill, example, resumed_from, train

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with ours, and the frameworks."""
    return find_or_make_with_ours()


#: All that a task has saved, newest first.
_SAVED = """
import json, sys
from metaflow import Checkpoint
found = Checkpoint().list(task=sys.argv[1], attempt="all")
print(json.dumps([[one.name, one.size, one.metadata, one.latest, one.state] for one in found]))
"""


@pytest.mark.parametrize("by_hand", ["True", "False"])
def test_adapters_each_time_and_the_base_once(by_hand: str, python: str, tmp_path: Path) -> None:
    arguments = ["--by-hand", by_hand]
    whole = train(Workspace(tmp_path / "whole"), example("peft"), python, arguments=arguments)
    killed = train(Workspace(tmp_path / "killed"), example("peft"), python, [Kill(7)], arguments=arguments)
    assert resumed_from(killed, whole) == [6]
    assert killed.run.output.count("The base is made") == 1, "a retry gets the one that was saved"
    (task,) = killed.run.tasks()["start"]
    *adapters, base = killed.run.env.query(_SAVED, task.pathspec)
    assert (base[0], base[2]["training"], base[3]) == ("base", True, False)
    assert [name for name, *_ in adapters] == ["mfchckpt"] * 10
    assert {state for *_, state in [base, *adapters]} == {"COMMITTED"}
    assert base[1] > 100_000, "the weights of the base"
    assert max(size for _, size, *_ in adapters) < base[1] / 2, "and a checkpoint has none of them"


def test_what_does_not_fit_is_refused(python: str, local: Workspace) -> None:
    run = local.run_flow("peft_cases_flow", python=python, env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    found = run.tasks()["start"][0].artifacts
    assert found["made"] == [1, 1, 2], "each attempt makes the base of which no copy is kept"
    assert found["changed"].startswith(
        "IntegrityError: The base model is not the one that the adapters were trained on"
    )
    assert found["none"] is None
    assert "without its base: nothing is named 'not saved so far'" in run.output
    assert found["other"].startswith("UsageError: The adapter 'default' that was loaded is not the one of this model")
    assert found["no_adapter"].startswith("UsageError: What was loaded has no adapter 'second'")
    assert found["not_a_class"].startswith("UsageError: The class of the base model, __main__:Mine, cannot be imported")

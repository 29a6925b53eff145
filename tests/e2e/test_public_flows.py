"""The public example flows with tiny models are killed and resume: with ours beside metaflow-checkpoint, and with that.

Slow for the imports of the frameworks, of which each flow starts four to six processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.flow_runs.frameworks import find_or_make_both, find_or_make_incumbent
from harness.flow_runs.metaflow_env import FLOWS, RunningFlow, Workspace, wait_until
from harness.s3.gated_s3 import GatedS3

#: The first of them may make the environments.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

PUBLIC = FLOWS / "public"
#: Where the flows find the modules beside them; and nobody asks the hub of Hugging Face.
ALWAYS = {"PYTHONPATH": str(PUBLIC), "HF_HUB_OFFLINE": "1"}
#: Imports, on whatever the machine has left.
_MARKER_S, _FLOW_S = 240.0, 400.0


@dataclass(frozen=True)
class Example:
    """A flow, and what is known about it.

    Parameters
    ----------
    flow : str
        File in the folder of public flows.
    step : str
        The step that trains.
    kill_at : int
        Its processes are killed when this epoch, step or round is saved.
    first : int
        With what the next attempt begins.
    name : str
        Name of the checkpoint that the next attempt loads.
    history : bool
        Its checkpoints hold the losses as well.
    """

    flow: str
    step: str
    kill_at: int
    first: int
    name: str
    history: bool = False


EXAMPLES = {
    "torch": Example("torch_flow", "start", 3, 4, "mfchckpt"),
    "lightning": Example("lightning_flow", "start", 2, 3, "val_loss_best"),
    "trainer": Example("trainer_flow", "finetune", 6, 7, "chckpt_1", history=True),
    "keras": Example("keras_flow", "start", 2, 3, "metaflow_keras_checkpoint_1"),
    "xgboost": Example("xgboost_flow", "start", 9, 10, "mfchckpt"),
    "ddp": Example("ddp_flow", "start", 2, 3, "epoch_checkpoint"),
}


@dataclass(frozen=True)
class Trained:
    """What a run came to: what the attempt that succeeded found and computed, and what the last step read of it."""

    attempt: int
    loaded: list[str]
    losses: dict[int, float]
    weights: str
    tested: Any
    artifacts: Mapping[str, Any]


@pytest.fixture(scope="module")
def both() -> str:
    """The interpreter of the environment with ours and metaflow-checkpoint."""
    return find_or_make_both()


@pytest.fixture(scope="module")
def incumbent() -> str:
    """The interpreter of the environment with metaflow-checkpoint alone."""
    return find_or_make_incumbent()


def train(base: Path, example: Example, python: str, *, killed: bool) -> Trained:
    """Run the flow in a world of its own; with ``killed``, SIGKILL its training as soon as it has saved."""
    workspace = Workspace(base)
    marker = base / "marker"
    settings = {**ALWAYS, "KILL_MARKER": str(marker), "KILL_AT": str(example.kill_at if killed else "never")}
    try:
        running = workspace.start_flow(PUBLIC / f"{example.flow}.py", python=python, env=settings)
        if killed:
            kill_at_marker(running, marker)
        run = running.finish(_FLOW_S)
        assert run.returncode == 0, run.output
        tasks = run.tasks()
        (trained,), (end,) = tasks[example.step], tasks["end"]
        found = trained.artifacts
        return Trained(
            trained.attempt,
            trained.metadata_of("checkpoint-load-key"),
            {int(moment): loss for moment, loss in found["losses"].items()},
            found["weights"],
            end.artifacts["tested"],
            {**found, **end.artifacts},
        )
    finally:
        workspace.kill_leftovers()


def kill_at_marker(running: RunningFlow, marker: Path) -> None:
    """SIGKILL of what trains, as soon as it says that it has saved enough."""
    wait_until(lambda: marker.exists() or running.process.poll() is not None, "the flow gets there", _MARKER_S)
    assert marker.exists(), running.output
    for process in json.loads(marker.read_text()):
        with contextlib.suppress(ProcessLookupError):  # Ended by the death of another one.
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("framework", EXAMPLES)
def test_a_public_flow_that_is_killed_resumes_and_ends_as_if_it_had_not_been(
    framework: str, both: str, incumbent: str, tmp_path: Path
) -> None:
    example = EXAMPLES[framework]
    whole = train(tmp_path / "whole", example, both, killed=False)
    killed = train(tmp_path / "killed", example, both, killed=True)
    theirs = train(tmp_path / "theirs", example, incumbent, killed=True)

    assert (whole.attempt, whole.loaded) == (0, [])
    for name, one in (("ours", killed), ("theirs", theirs)):
        assert one.attempt == 1, name
        # The newest that was saved before the kill, and nothing else.
        (key,) = one.loaded
        assert key.rsplit("/", 1)[1].split(".")[1:3] == ["0", example.name], name
        # It goes on where it was, not at the beginning, and comes to the same end.
        assert one.artifacts.get("resumed_at", example.kill_at) == example.kill_at, name
        assert min(one.losses) == (min(whole.losses) if example.history else example.first), name
        assert one.losses == {moment: whole.losses[moment] for moment in one.losses}, name
        assert max(one.losses) == max(whole.losses), name
        assert (one.weights, one.tested) == (whole.weights, whole.tested), name
    assert len(set(whole.losses.values())) == len(whole.losses), "the model learns"
    # Both know which of them it was; only references of ours have a manifest.
    newest = [one.artifacts["_task_latest_checkpoint"] for one in (whole, killed, theirs)]
    assert ["manifest" in reference for reference in newest] == [True, True, False]
    assert {reference["name"] for reference in newest} == {example.name}


#: Of each checkpoint of the first attempt: its step, and the files that a model is read from.
_SAVED_BEFORE = """
import json, os, sys
from metaflow import Checkpoint, Task
found = []
for entry in Checkpoint().list(task=Task(sys.argv[1], _namespace_check=False), attempt=0):
    Checkpoint().load(entry, entry["metadata"]["checkpoint_dir"])
    there = os.listdir(entry["metadata"]["checkpoint_dir"])
    found.append([entry["metadata"]["global_step"], "model.safetensors" in there and "optimizer.pt" in there])
print(json.dumps(found))
"""


def test_what_the_trainer_removes_while_it_waits_for_the_store_is_not_lost(
    s3: Workspace, gate: GatedS3, both: str
) -> None:
    """Nothing reaches the store before the kill, and the Trainer keeps two of its four checkpoints."""
    marker, killed_at = s3.root / "marker", 8
    settings = {**ALWAYS, "KILL_MARKER": str(marker), "KILL_AT": str(killed_at)}
    gate.close_gate("PUT,POST:hang")
    running = s3.start_flow(PUBLIC / "trainer_flow.py", python=both, env=settings)
    kill_at_marker(running, marker)
    wait_until(lambda: "Task is starting (retry)" in running.output, "the retry begins", _MARKER_S)
    bucket = s3.env["METAFLOW_DATASTORE_SYSROOT_S3"].split("/")[2]
    assert [path for path in gate.answered("PUT") if bucket in path and "mf.checkpoints/" in path] == []
    gate.open_gate()
    run = running.finish(_FLOW_S)
    assert run.returncode == 0, run.output
    (trained,) = run.tasks()["finetune"]
    assert (trained.attempt, trained.artifacts["resumed_at"]) == (1, killed_at)
    assert s3.query(_SAVED_BEFORE, trained.pathspec, python=both) == [[8, True], [6, True], [4, True], [2, True]]


#: What a flow saved is loaded later on, from anywhere.
_LOAD_MODEL = """
import sys
from metaflow import Run, load_model, namespace
namespace(None)
load_model(Run(sys.argv[1])["start"].task["final_checkpoint"].data, "there")
print(open("there/counter.txt").read())
"""


def test_the_counter_of_the_documentation_fails_by_itself_and_reaches_18(
    both: str, incumbent: str, tmp_path: Path
) -> None:
    found = []
    for name, python in (("ours", both), ("theirs", incumbent)):
        workspace = Workspace(tmp_path / name)
        run = workspace.run_flow(PUBLIC / "counter_flow.py", python=python, env=ALWAYS)
        (start,), (end,) = run.tasks()["start"], run.tasks()["end"]
        artifacts = start.artifacts
        assert artifacts["loaded_from"] == [start.pathspec, 0]
        afterwards = workspace.query(_LOAD_MODEL, run.pathspec, python=python)
        found.append((start.attempt, artifacts["resumed_at"], end.artifacts["read_by_model"], afterwards))
    assert found == [(1, 9, 18, 18)] * 2


#: In a process of its own: the directory as it comes from the store, and what the framework takes of it.
_CHOSEN = """
import importlib, json, os, sys
from metaflow import Checkpoint
module, reference = sys.argv[1:]
Checkpoint().load(json.loads(reference), "there")
print(json.dumps(importlib.import_module(module).chosen("there")))
"""


#: Neither the name nor the number says which is the newest: only the time does.
_CHOICES = {"trainer": ["checkpoint-8", "checkpoint-8", "checkpoint-6"], "lightning": ["last.ckpt", 3, True]}


@pytest.mark.parametrize("framework", _CHOICES)
@pytest.mark.parametrize("storage_format", ["files", "tar"])
def test_on_another_machine_a_framework_takes_the_newest_of_an_output_directory(
    framework: str, storage_format: str, both: str, tmp_path: Path
) -> None:
    """What is saved is a whole directory of outputs, in which the newest is not the one of the highest number."""
    workspace = Workspace(tmp_path)
    module = f"{framework}_training"
    settings = {**ALWAYS, "TRAINING": module, "STORAGE_FORMAT": storage_format}
    run = workspace.start_flow(PUBLIC / "outputs_flow.py", python=both, env=settings).finish(_FLOW_S)
    assert run.returncode == 0, run.output
    (start,) = run.tasks()["start"]
    assert not Path(start.artifacts["directory"]).exists(), "the originals are gone"
    reference = json.dumps(start.artifacts["saved"])
    after = workspace.query(_CHOSEN, module, reference, python=both, env=ALWAYS)
    assert after == start.artifacts["before"] == _CHOICES[framework]

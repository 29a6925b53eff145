"""Keras: killed, a training ends as if it had not been; and what is done to it and its files does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import Workspace
from harness.integrations.curves import Kill, example, resumed_from, train

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def test_a_training_that_is_killed_in_an_epoch_ends_with_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    python = find_or_make_with_ours()
    whole = train(Workspace(tmp_path / "whole"), example("keras"), python)
    # In the second epoch, of 16 batches: its third and its sixth are saved.
    killed = train(Workspace(tmp_path / "killed"), example("keras"), python, [Kill(23)])
    assert resumed_from(killed, whole) == [22]
    # The averages that Keras shows are those of whole epochs.
    losses = [each.run.tasks()["start"][0].artifacts["losses"] for each in (whole, killed)]
    assert losses[1] == losses[0][1:]


def test_what_is_done_to_a_training_and_its_files_does_no_harm(local: Workspace) -> None:
    run = local.run_flow("keras_attack_flow", python=find_or_make_with_ours())
    (task,) = run.tasks()["start"]
    found = task.artifacts
    assert task.attempt == 1, "it was killed as it wrote the third checkpoint of the second training"
    # The first training had ended, and the second one was taken up under its own name: somebody else has saved as well.
    assert found["epochs"] == [["second", 2], ["second", 3]]

    def of(name: str, *fields: str, entries: str = "saved") -> list[list[Any]]:
        return [[metadata[field] for field in fields] for each, metadata in found[entries] if each == name and metadata]

    assert of("first", "epoch", "batches") == [[1, 0], [2, 0], [3, 0], [4, 0]]
    assert of("second", "epoch", "batches") == [[1, 0], [2, 0], [3, 0], [4, 0]]
    # Each file of ModelCheckpoint once, and not what was there before.
    assert of("model", "epoch", "path") == [[epoch, f"m {epoch + 1}-.keras"] for epoch in range(4)]
    assert of("best", "epoch", "path") == [[1, "best.weights.h5"], [3, "best.weights.h5"]]
    assert found["loaded"] == [8, 16], "steps of the optimizer: the file was written over"

    errors = found["errors"]
    assert errors.keys() == {"zero", "another model", "fewer batches"}
    assert errors["another model"].startswith("The model is not the one that was saved: ")
    assert errors["fewer batches"].startswith("This epoch has fewer batches than were trained of it")
    # A second fit() with the callback goes on; another callback takes up its last batch; then no epoch was left.
    assert found["again"] == [4, 8, 8, 16, 20]
    assert run.output.count("keras 4.0 was not tried") == 2, "once in each attempt that imports it"
    local.assert_clean()

"""Lightning: killed, a training ends as if it had not been; and what Lightning does to its files does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import Workspace
from harness.integrations.curves import Kill, example, resumed_from, train

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def test_a_training_that_is_killed_ends_with_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    python = find_or_make_with_ours()
    whole = train(Workspace(tmp_path / "whole"), example("lightning"), python)
    # In the second epoch (of 8 steps each), before another one is saved.
    killed = train(Workspace(tmp_path / "killed"), example("lightning"), python, [Kill(12)])
    assert resumed_from(killed, whole) == [8]
    assert len(whole.lives[0].losses[0]) == 32


#: Of checkpoints: the file's name, the step that the metadata names, the step that it really has, its metrics.
_METRICS = ["a/loss"]
_ALL = [[f"a b*epoch=0-step={step}.ckpt", step, step, _METRICS] for step in (1, 2, 3, 4)]


def test_what_lightning_does_to_its_files_does_no_harm(local: Workspace) -> None:
    run = local.run_flow("lightning_attack_flow", python=find_or_make_with_ours())
    (task,) = run.tasks()["start"]
    seen = task.artifacts["found"]
    saved, left = seen.pop("saved"), seen.pop("left")
    for what, text in {
        "callback and io": "SavingCheckpointIO and CheckpointCallback save the same files",
        "callback and io within": "AsyncCheckpointIO writes after it has returned",
        "callback and later": "AsyncCheckpointIO writes after it has returned",
        "io around later": "AsyncCheckpointIO writes after it has returned",
        "not local": "Lightning has written no such checkpoint on this machine (memory://there",
    }.items():
        assert seen.pop(what).startswith(text), what
    assert seen == {}

    # All were saved, each as it was when it was written, though one file is all that Lightning has left. The other
    # callback has saved weights alone; the copy named last is none.
    assert left == ["a b*epoch=0-step=4.ckpt", "last.ckpt"]
    weights = ["epoch=0-step=3.ckpt", 3, 3]
    assert saved["callback"] == [*_ALL[:3], [*weights, _METRICS], _ALL[3]]
    assert saved["io"] == [*_ALL[:3], [*weights, []], _ALL[3]]
    assert saved["thread"] == [[f"epoch=0-step={step}.ckpt", step, step, _METRICS] for step in (1, 2, 3, 4)]
    assert saved["folder"] == [[f"epoch=0-step={step}.ckpt", step, step, _METRICS] for step in (2, 4)]
    # A training that was broken off, then begun again with the same Trainer, and a file that was written by hand.
    assert saved["again"] == [["epoch=0-step=4.ckpt", 4, 4, _METRICS], ["by hand.ckpt", 4, 4, _METRICS]]

    # Killed with half of the third one written.
    assert (task.attempt, task.artifacts["resumed"]) == (1, ["epoch=0-step=2.ckpt", 2])
    assert run.output.count("pytorch_lightning 9.0 was not tried") == 1, "once"
    local.assert_clean()


def test_a_directory_that_all_nodes_see_is_saved_by_the_first_one(local: Workspace) -> None:
    run = local.run_flow("lightning_attack_flow", "run", "--nodes", "2", python=find_or_make_with_ours())
    (task,) = run.tasks()["start"]
    assert task.artifacts["found"] == ["sharded.ckpt", None, ["meta.pt", "shard-0.pt", "shard-1.pt"]]
    local.assert_clean()

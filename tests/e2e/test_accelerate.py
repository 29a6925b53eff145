"""Accelerate: killed, a training ends as if it had not been; and what Accelerate does to its files does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import Workspace
from harness.integrations.curves import Kill, example, resumed_from, train

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

#: About one of sixty runs that nobody kills loses a rank as its interpreter ends, after the training, by a thread of
#: C++ (there is no Python frame). torchrun starts it again, and what others are compared with would be in two parts.
_ABORTED = "terminate called without an active exception"


def test_ranks_of_which_one_is_killed_end_with_the_losses_of_ranks_that_were_not(tmp_path: Path) -> None:
    """Under torchrun: each rank has its own random numbers and its own share of the data."""
    python, ranks = find_or_make_with_ours(), ("--ranks", "2")
    whole = train(Workspace(tmp_path / "whole"), example("accelerate"), python, arguments=ranks)
    if _ABORTED in whole.run.output:
        whole = train(Workspace(tmp_path / "again"), example("accelerate"), python, arguments=ranks)
    assert {rank: len(losses) for rank, losses in whole.lives[0].losses.items()} == {0: 24, 1: 24}
    # In the second epoch of 8 batches each, of which the third and the sixth are saved.
    killed = train(Workspace(tmp_path / "killed"), example("accelerate"), python, [Kill(13, rank=1)], arguments=ranks)
    assert resumed_from(killed, whole) == [11]


def test_what_accelerate_does_to_its_files_does_no_harm(local: Workspace) -> None:
    run = local.run_flow("accelerate_attack_flow", python=find_or_make_with_ours())
    (task,) = run.tasks()["start"]
    assert task.attempt == 1, "it was killed as it wrote the fourth one"
    assert task.artifacts["found"] == {
        # Somebody else has saved under the same name.
        "names": {"rotated": [1, 2, 3, None], "other": [9], "out": [0], "nowhere": [None]},
        # Though Accelerate keeps one.
        "loaded": [1, 2, 3],
        # A half one, whose number is not used again; nobody goes on from it.
        "left": ["checkpoint_4"],
        "twice": [3, 3],
        "resumed": 3,
        "after": ["checkpoint_5"],
    }
    assert run.output.count("accelerate 9.0 was not tried") == 2, "once in each attempt that imports it"
    local.assert_clean()


def test_nodes_save_what_each_of_them_has_or_the_first_one_what_all_see(local: Workspace) -> None:
    run = local.run_flow("accelerate_attack_flow", "run", "--nodes", "2", python=find_or_make_with_ours())
    (task,) = run.tasks()["start"]
    files = [
        "custom_checkpoint_0.pkl",
        "model.safetensors",
        "optimizer.bin",
        "random_states_0.pkl",
        "random_states_1.pkl",
    ]
    assert task.artifacts["found"] == {
        "own": [2, files],
        "shared": [None, files],
        # Both have the metadata and the objects of the main process.
        "0": [0, 3],
        "1": [0, 3],
    }
    local.assert_clean()

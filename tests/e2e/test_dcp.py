"""PyTorch's distributed checkpoints: whatever happens to ranks, what is loaded is what all of them had saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.common.made_once import once
from harness.flow_runs.frameworks import find_or_make_with_ours
from harness.flow_runs.metaflow_env import REPOSITORY, Workspace
from harness.integrations import curves
from harness.integrations.curves import Kill

#: The first of them may make the environment.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

CASES = REPOSITORY / "harness" / "integrations" / "dcp_ranks.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks found, by case; all in one step, as the imports take most of the time."""
    return once(tmp_path_factory, "dcp", _found)


def _found(folder: Path) -> dict[str, Any]:
    local, python = Workspace(folder / "local"), find_or_make_with_ours()
    cases = "reshard mesh killed full planners two names safetensors process"
    try:
        run = local.run_flow("dcp_flow", env={"CASES": str(CASES), "CASE": cases}, python=python)
        local.assert_clean()
        answers: dict[str, Any] = run.tasks()["start"][0].artifacts["found"]
        assert list(answers) == cases.split()
        answers["outside"] = local.query(_OUTSIDE, answers["reshard"]["keys"][0], python=python)
    finally:
        local.kill_leftovers()
    return answers


_OUTSIDE = """
import json, logging, os, sys, tempfile, warnings
tempfile.tempdir = os.getcwd()
import torch
torch.__version__ = "2.99.0"
log = []
class Log(logging.Handler):
    def emit(self, record):
        log.append(record.getMessage())
logging.getLogger("async_ckpt").addHandler(Log())
import torch.distributed.checkpoint as dcp
from async_ckpt.integrations.dcp import StoreReader, StoreWriter
warnings.simplefilter("ignore")  # That there is no group.
state = {"training": {"model": {"0.weight": torch.zeros(32, 16)}}}
dcp.load(state, storage_reader=StoreReader(sys.argv[1]))
try:
    dcp.save(state, storage_writer=StoreWriter())
    said = "nothing"
except BaseException as error:
    said = str(error)
left = [name for name in os.listdir() if name.startswith("async-ckpt-")]
total = state["training"]["model"]["0.weight"].abs().sum().item()
print(json.dumps({"sum": total, "said": said, "left": left, "log": log}))
"""


def test_what_two_ranks_saved_is_loaded_by_two_and_four_and_one_and_without_a_group(found: dict[str, Any]) -> None:
    reshard = found["reshard"]
    assert reshard["keys"][0] == reshard["keys"][1], "every rank is told the key"
    assert len(reshard["wanted"]) > 20
    assert reshard["before"] != reshard["wanted"]
    assert reshard["found"] == [reshard["wanted"]] * (2 + 4 + 1 + 1)
    # The second rank needs nothing of the first one's; that one also has what all ranks have alike.
    assert reshard["linked"], "however large they are"
    assert reshard["files"][1] == [".metadata", "__1_0.distcp"]


@pytest.mark.parametrize("how", ["hsdp", "tensors"])
def test_shards_in_two_dimensions(found: dict[str, Any], how: str) -> None:
    mesh = found["mesh"][how]
    assert mesh["before"] != mesh["wanted"]
    assert mesh["found"] == [mesh["wanted"]] * 4


def test_outside_of_a_step_it_can_be_loaded_and_nothing_be_saved(found: dict[str, Any]) -> None:
    outside = found["outside"]
    assert outside["sum"] > 0
    assert outside["left"] == []
    assert "this process belongs to no step with @checkpoint" in outside["said"]


def test_a_version_of_torch_that_was_not_tried_is_said_once(found: dict[str, Any]) -> None:
    (line,) = found["outside"]["log"]
    assert line.startswith("torch 2.99.0 was not tried with this package")


def test_a_rank_that_dies_before_the_commit_leaves_no_checkpoint(found: dict[str, Any]) -> None:
    killed = found["killed"]
    assert killed["found"][1] is None
    assert killed["found"][0].startswith("RuntimeError"), "the other rank is told"
    assert killed["newest"] == killed["before"]


def test_a_full_disk_fails_that_save_on_all_ranks_and_the_next_one_succeeds(found: dict[str, Any]) -> None:
    full = found["full"]
    for said, left, key in full["found"]:
        assert f"SpoolError: The checkpoint could not be written: {full['limit']}" in said
        assert left == [], "what was written is removed"
        assert key == full["saved"][0]
    assert full["saved"][1] == found["killed"]["before"], "there is none in between"


def test_planners_may_keep_their_plans_and_leave_a_rank_with_nothing(found: dict[str, Any]) -> None:
    assert found["planners"]["caching"] == [[True] * 3] * 2
    assert found["planners"]["one_rank"] == [[True, [".metadata", "__0_0.distcp"]]] * 2


def test_two_saves_at_once_hold_what_was_there_when_each_began(found: dict[str, Any]) -> None:
    for keys, values in found["two"]:
        assert len(set(keys)) == 2
        assert values == [[0.0], [1.0]]


def test_a_process_of_its_own_saves(found: dict[str, Any]) -> None:
    assert found["process"] == [[1.0] * 5]


def test_names_and_what_is_refused(found: dict[str, Any]) -> None:
    names = found["names"]
    assert names["found"] == [[1.0, 1.0]]
    assert names["newest"] == names["odd"]
    (errors,) = names["errors"]
    assert "'a/b' cannot be the name of a checkpoint" in errors["slash"]
    assert "This task has saved no checkpoint of the name 'nobody'" in errors["nobody"]
    assert "The checkpoint has no file '.metadata'" in errors["not ours"]
    assert "use_collectives=False writes a checkpoint for each rank" in errors["uncoordinated"]


def test_safetensors(found: dict[str, Any]) -> None:
    for saved, loaded in found["safetensors"]["found"]:
        assert loaded == saved
    assert "model-00001-of-00001.safetensors" in found["safetensors"]["files"]
    for said in found["safetensors"]["same file"]:
        assert "Rank 1 and one before it have both written 'model-00001-of-00001.safetensors'" in said


def test_ranks_that_torchrun_starts_again_have_the_losses_of_ranks_that_were_not_killed(tmp_path: Path) -> None:
    python, flow = find_or_make_with_ours(), curves.example("dcp")
    size = ["--steps", "6", "--every", "2", "--how", "thread"]
    whole = curves.train(Workspace(tmp_path / "whole"), flow, python, arguments=size)
    again = curves.by_torchrun(1)
    killed = curves.train(
        Workspace(tmp_path / "killed"), flow, python, [Kill(line=5, rank=1)], arguments=size, env=again
    )
    assert [life.name for life in killed.lives] == ["0.0", "0.1"], killed.run.output
    (resumed,) = curves.resumed_from(killed, whole)
    assert resumed in (2, 4), "step 4 was being saved"


def test_the_nodes_of_a_gang_save_together_and_go_on_from_what_all_had_saved(local: Workspace) -> None:
    # What was killed never saves its part: the others are not to wait long for it.
    settings = {"METAFLOW_ASYNC_CKPT_COLLECTIVE_GRACE_S": "2"}
    run = local.run_flow("dcp_gang_flow", env=settings, python=find_or_make_with_ours())
    tasks = run.tasks()
    nodes = tasks["join"][0].artifacts["nodes"]
    for rank, (resumed_at, loaded, keys) in enumerate(nodes):
        assert resumed_at == 2, "node 1 died when it had written the third"
        assert loaded == [[2.0] * 3, [2.0 + rank / 2] * 5]
        assert len(keys) == 2
        assert keys == nodes[0][2]
    (saved,) = {json.dumps(task.artifacts["_task_latest_checkpoint"], sort_keys=True) for task in tasks["train"]}
    assert json.loads(saved)["world"] == len(nodes)
    local.assert_clean()

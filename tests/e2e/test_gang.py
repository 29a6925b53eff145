"""The manual's gang: four nodes save together, one falls over, and all go on from the same checkpoint."""

from __future__ import annotations

import pytest

from async_ckpt.card.page import data_of
from async_ckpt.card.rows import rows_of
from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

GANG = REPOSITORY / "examples" / "gang_flow.py"


def test_all_ranks_go_on_from_what_all_of_them_had_saved(local: Workspace) -> None:
    run = local.run_flow(GANG)
    tasks = run.tasks()
    assert tasks["join"][0].artifacts["resumed"] == [4] * 4
    control = min(tasks["train"], key=lambda task: len(task.pathspec))
    for task in tasks["train"]:
        recorded = task.artifacts["_task_checkpoints"]
        assert [data["metadata"]["count"] for data in recorded] == [6, 5]
        assert {data["pathspec"] for data in recorded} == {control.pathspec}
    listed = local.query(_LIST, control.pathspec)
    assert sorted({data["metadata"]["count"] for data in listed}) == [5, 6]
    assert all(data["world"] == 4 for data in listed)
    assert "died before saving a part of the checkpoint" in run.output
    local.assert_clean()
    # A gang is one task, and has one card.
    (page,) = [path for path in (local.cwd / ".metaflow").rglob("checkpoint-*.html") if "/train/" in str(path)]
    card = data_of(page.read_text())
    assert (card["state"], card["task"]["pathspec"], card["task"]["nodes"]) == ("ended", control.pathspec, 4)
    assert sum(row["attempt"] == 1 and row["state"] == "COMMITTED" for row in rows_of(card)) == 2


_LIST = """
import json, sys
from metaflow import Checkpoint
print(json.dumps(Checkpoint().list(task=sys.argv[1])))
"""


@pytest.mark.long
def test_collective_saves_on_s3(s3: Workspace) -> None:
    run = s3.run_flow(GANG, "run", "--nodes", "2", "--steps", "5")
    assert run.tasks()["join"][0].artifacts["resumed"] == [4] * 2

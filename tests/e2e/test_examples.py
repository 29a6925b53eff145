"""The flows that the manual's chapters show do what the chapters say."""

from __future__ import annotations

import json
import re

import pytest

from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

EXAMPLES = REPOSITORY / "examples"

_LOAD_ALL = """
import json, sys
from metaflow import Checkpoint
found = []
for number, reference in enumerate(json.loads(sys.argv[1])):
    Checkpoint().load(reference, f"there-{number}")
    found.append(json.load(open(f"there-{number}/state.json")))
print(json.dumps(found))
"""


@pytest.mark.long
def test_ranks_save_their_own_shards_and_resume_from_them_after_one_has_failed(local: Workspace) -> None:
    run = local.run_flow(EXAMPLES / "subprocess_flow.py")
    (task,) = run.tasks()["start"]
    assert task.attempt == 1
    assert "Rank 1 fails, as intended" in run.output
    # Rank 1 had saved 0, 1 and 2 in the attempt before, and the others all.
    assert task.artifacts["began_at"] == [6, 3, 6, 6]
    newest = task.artifacts["newest"]
    assert [(reference["name"], reference["metadata"]["epoch"]) for reference in newest] == [
        (f"rank-{rank}", 5) for rank in range(4)
    ]
    contents = local.query(_LOAD_ALL, json.dumps(newest))
    assert contents == [{"rank": rank, "epoch": 5} for rank in range(4)]
    assert "Loading the following checkpoint" not in run.output, "no rank's shard is the step's"
    local.assert_clean()


def test_one_split_is_retried_from_its_own_checkpoint_and_the_others_are_left_alone(local: Workspace) -> None:
    run = local.run_flow(EXAMPLES / "foreach_flow.py")
    tasks = run.tasks()
    trained = {task.artifacts["rate"]: task for task in tasks["train"]}
    assert {rate: (task.attempt, task.artifacts["began_at"]) for rate, task in trained.items()} == {
        0.1: (0, 0), 0.01: (1, 3), 0.001: (0, 0),
    }  # fmt: skip
    for rate, task in trained.items():
        saved = task.artifacts["saved"]
        # Of its own alone, all attempts.
        assert [(c["metadata"]["rate"], c["metadata"]["epoch"]) for c in saved] == [(rate, n) for n in (4, 3, 2, 1, 0)]
        assert {c["pathspec"] for c in saved} == {task.pathspec}
    identities = {re.sub(r"/[^/]*$", "", task.artifacts["last"]["key"]) for task in trained.values()}
    assert len(identities) == 3, "each split has an identity of its own"
    (join,) = tasks["join"]
    assert join.artifacts["began_at"] == {"0.1": 0, "0.01": 3, "0.001": 0}
    models = join.artifacts["models"]
    contents = local.query(_LOAD_ALL, json.dumps(list(models.values())))
    assert contents == [{"rate": float(rate), "epoch": 4} for rate in models]
    local.assert_clean()

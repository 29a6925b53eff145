"""A gang's ranks save side by side, and nothing of one is lost to or mixed with another's."""

from __future__ import annotations

import pytest

from harness.flow_runs.metaflow_env import Workspace

_LOAD = """
import json, os, sys
from metaflow import Checkpoint
contents = {}
for key in sys.argv[1:]:
    with Checkpoint() as into:
        into.load(key)
        contents[key] = open(os.path.join(into.directory, "content")).read()
print(json.dumps(contents))
"""


@pytest.mark.long
def test_every_save_of_every_rank_of_a_gang_is_in_the_store_with_its_own_content(local: Workspace) -> None:
    run = local.run_flow("parallel_flow")
    tasks = run.tasks()
    saved = tasks["join"][0].artifacts["saved"]
    expected = {c["key"]: f"rank {c['metadata']['rank']} {c['metadata']['count']}" for c in saved}
    assert sorted(expected.values()) == sorted(f"rank {rank} {count}" for rank in range(2) for count in range(6))
    assert local.query(_LOAD, *expected) == expected
    for task in tasks["train"]:
        recorded = task.artifacts["_task_checkpoints"]
        assert [c["metadata"] for c in recorded] == [
            {"rank": task.artifacts["rank"], "count": n} for n in range(5, -1, -1)
        ]
    # Whichever of the gang's tasks is asked for, they are all there: they are the first one's.
    listing = """
import json, sys
from metaflow import Checkpoint
print(json.dumps([sorted(c.key for c in Checkpoint().list(task=task)) for task in sys.argv[1:]]))
"""
    listed = local.query(listing, *(task.pathspec for task in tasks["train"]))
    assert listed == [sorted(expected)] * 2
    local.assert_clean()

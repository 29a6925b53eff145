"""``current.checkpoint.watch`` in real flows."""

from __future__ import annotations

import json

from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

_RUN = """
import json, sys
from metaflow import Runner
with Runner(sys.argv[1], pylint=False).run() as running:
    output = running.stdout + running.stderr
    print(json.dumps({"status": running.status, "output": output, "pathspec": running.run.pathspec}))
"""

_SIZES = """
import json, os, sys
from metaflow import Checkpoint
found = []
for entry in Checkpoint().list(task=sys.argv[1], attempt=int(sys.argv[2])):
    with Checkpoint() as into:
        into.load(entry)
        model = open(into.directory + "/model.bin", "rb").read()
        found.append([entry["metadata"]["path"], model == bytes([entry["metadata"]["global_step"]]) * 100_000])
print(json.dumps(found))
"""


def test_what_an_unmodified_script_writes_is_saved_and_a_retry_resumes_from_its_last_whole_one(
    local: Workspace,
) -> None:
    done = local.query(_RUN, str(REPOSITORY / "examples" / "watch_flow.py"))
    assert done["status"] == "successful", done["output"]
    (task,) = local.tasks_of(done["pathspec"])["start"]
    assert task.artifacts["resumed_from"] == "checkpoint-2"
    assert task.artifacts["written"] == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]
    assert "left out: checkpoint-3 has no trainer_state.json" in done["output"]
    # Written in the moment before the end of the step or of the trainer, all of them whole.
    for attempt, numbers in ((1, (5, 4, 3)), (0, (2, 1))):
        assert local.query(_SIZES, task.pathspec, str(attempt)) == [[f"checkpoint-{n}", True] for n in numbers]
    assert task.artifacts["_task_latest_checkpoint"]["metadata"]["path"] == "checkpoint-5"
    local.assert_clean()


def test_a_watch_that_saw_nothing_fails_the_step_or_says_so(local: Workspace) -> None:
    said = "no-such-directory never came into being"
    failed = local.run_flow("watch_trouble_flow", succeeds=False)
    assert said in failed.output
    warned = local.run_flow("watch_trouble_flow", env={"CKPT_OPTIONS": json.dumps({"on_failure": "warn"})})
    assert said in warned.output
    local.assert_clean()

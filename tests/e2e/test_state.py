"""States saved by real flows: killed at any moment, the training goes on with the very next float."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from harness.flow_runs import ddp
from harness.flow_runs.metaflow_env import FLOWS, Workspace
from harness.integrations.curves import Kill, by_torchrun, example, resumed_from, train

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(ddp.MISSING), reason=ddp.MISSING or "-")]


def test_killed_twice_the_losses_are_those_of_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(Workspace(tmp_path / "whole"), example("state"), sys.executable)
    kills = [Kill(11), Kill(9, 0.002, attempt=1)]
    killed = train(Workspace(tmp_path / "killed"), example("state"), sys.executable, kills)
    begins = resumed_from(killed, whole)
    # At most what was being copied as it was killed is lost, and the step that was not saved yet.
    assert 8 <= begins[0] <= 11
    assert begins[0] + 5 <= begins[1]


def test_ranks_that_torchrun_starts_again_go_on_from_the_newest_that_all_had_saved(tmp_path: Path) -> None:
    flow = FLOWS / "collective_state_flow.py"
    whole = train(Workspace(tmp_path / "whole"), flow, sys.executable)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        settings = {**by_torchrun(1), "METAFLOW_ASYNC_CKPT_STATE_DIR": memory}
        # Rank 0 may save step 4 alone: nobody waits for the part of rank 1.
        killed = train(Workspace(tmp_path / "killed"), flow, sys.executable, [Kill(4, rank=1)], env=settings)
        left = [path for path in Path(memory).rglob("*") if path.is_file()]
    assert [life.name for life in killed.lives] == ["0.0", "0.1"], killed.run.output
    assert resumed_from(killed, whole) == [2]
    assert left == []


_FLOW = """
import subprocess, sys
import torch
from metaflow import Checkpoint, FlowSpec, checkpoint, current, retry, step

TRAINER = '''
import os, signal, sys, torch
from metaflow import Checkpoint
model = torch.nn.Linear(8, 8)
tied = {{"weight": model.weight, "again": model.weight}}
state = Checkpoint().load_state(into={{"model": model.state_dict()}})
first = state["step"] + 1 if state is not None else 0
for number in range(first, 6):
    with torch.no_grad():
        model.weight.fill_(number)
    Checkpoint().save_state({{"model": model.state_dict(), "step": number, "tied": tied}})
    if number == 3 and first == 0:
        os.kill(os.getpid(), signal.SIGKILL)
print("TRAINED", first, model.weight.unique().tolist())
'''

class SubprocessFlow(FlowSpec):
    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        subprocess.run([sys.executable, "-c", TRAINER], check=True)
        newest = current.checkpoint.list()[0]
        state = current.checkpoint.load_state(newest)
        assert state["tied"]["weight"].data_ptr() == state["tied"]["again"].data_ptr()
        self.newest, self.weight = newest, state["model"]["weight"].unique().tolist()
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    SubprocessFlow()
"""

_READ = """
import json, sys
from metaflow import Checkpoint
state = Checkpoint().load_state(json.loads(sys.argv[1]), mmap=False)
print(json.dumps([state["step"], state["model"]["weight"].unique().tolist()]))
"""


def test_a_subprocess_saves_and_resumes_a_state_and_anybody_reads_it(local: Workspace, tmp_path: Path) -> None:
    flow = tmp_path / "subprocess_flow.py"
    flow.write_text(_FLOW.replace("{{", "{").replace("}}", "}"))
    run = local.run_flow(flow)
    (task,) = run.tasks()["start"]
    assert task.attempt == 1
    assert "TRAINED 4 [5.0]" in run.output
    assert task.artifacts["weight"] == [5.0]
    assert local.query(_READ, json.dumps(task.artifacts["newest"])) == [5, [5.0]]
    local.assert_clean()

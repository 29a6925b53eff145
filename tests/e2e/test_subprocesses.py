"""``from metaflow import Checkpoint``: in subprocesses of a step, and outside of any task."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import FlowRun, TaskResult, Workspace, wait_until

_READ_ALL = """
import json, os, sys
from metaflow import Checkpoint, Task
task, = sys.argv[1:]
listed = Checkpoint().list(task=task)
contents = {}
for entry in listed:
    with Checkpoint() as into:
        into.load(entry)
        contents[entry["key"]] = open(os.path.join(into.directory, "content")).read()
with Checkpoint() as into:
    into.load(listed[0]["key"])
    by_key = open(os.path.join(into.directory, "content")).read()
Checkpoint().load(dict(listed[0]), "here")
print(json.dumps({
    "listed": listed, "contents": contents, "by_key": by_key, "in_path": open("here/content").read(),
    "by_task": Checkpoint().list(task=Task(task, _namespace_check=False), name="mfchckpt"),
    "other_name": Checkpoint().list(task=task, name="other"),
}))
"""


def check_all_saves_survived(workspace: Workspace, run: FlowRun, count: int) -> TaskResult:
    """Every save of the task and its subprocesses is in the store once, with its own content and its own version."""
    (task,) = run.tasks()["start"]
    saved = task.artifacts["saved"]
    assert len(saved) == count
    read = workspace.query(_READ_ALL, task.pathspec)
    expected = {c["key"]: f"{c['metadata']['who']} {c['metadata']['count']}" for c in saved}
    assert len(expected) == count, "Two saves have one key"
    assert read["contents"] == expected
    assert [c["version_id"] for c in read["listed"]] == list(range(count - 1, -1, -1))
    assert {c["state"] for c in read["listed"]} == {"COMMITTED"}
    newest = expected[read["listed"][0]["key"]]
    assert read["by_key"] == read["in_path"] == newest
    assert read["by_task"] == read["listed"]
    assert read["other_name"] == []
    assert {c["key"] for c in task.artifacts["_task_checkpoints"]} == set(expected)
    assert task.artifacts["_task_latest_checkpoint"]["version_id"] == count - 1
    return task


@pytest.mark.parametrize(
    ("options", "kill_agent"),
    [
        pytest.param({}, "", marks=pytest.mark.long, id="agent"),
        pytest.param({}, "1", id="agent killed"),
        pytest.param(
            {"uploader": "thread", "storage_format": "tar", "show_card": False},
            "",
            marks=pytest.mark.long,
            id="thread and tar",
        ),
    ],
)
def test_every_save_of_four_subprocesses_and_the_task_survives(
    local: Workspace, options: dict[str, Any], kill_agent: str
) -> None:
    run = local.run_flow("subprocess_flow", env={"CKPT_OPTIONS": json.dumps(options), "KILL_AGENT": kill_agent})
    task = check_all_saves_survived(local, run, 25)
    # What a subprocess listed and loaded inside of the step.
    read = task.artifacts["read"]
    assert [c["version_id"] for c in read["list"]] == list(range(24, -1, -1))
    assert read["entry"] == read["key"] == read["dict"] == "task 0"
    local.assert_clean()


@pytest.mark.long
def test_every_save_of_four_subprocesses_and_the_task_survives_on_s3(s3: Workspace) -> None:
    check_all_saves_survived(s3, s3.run_flow("subprocess_flow", env={"SAVES": "2"}), 10)
    s3.assert_clean()


_CANNOT = """
import json
import os
from metaflow import Checkpoint
def why(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__mro__[1].__name__}: {error}"
open("file", "w").close()
print(json.dumps({
    "list": why(lambda: Checkpoint().list()),
    "save": why(lambda: Checkpoint().save("file")),
    "save nothing": why(lambda: Checkpoint().save()),
    "load nowhere": why(lambda: Checkpoint().load("some key")),
    "load no key": why(lambda: Checkpoint().load("some key", "here")),
    "load up": why(lambda: Checkpoint().load("mf.checkpoints/checkpoints/artifacts/F/../s/i/h.0.n.0", "here")),
    "load missing": why(lambda: Checkpoint().load("mf.checkpoints/checkpoints/artifacts/F/s/c/i/h.0.n.0", "here")),
    "load a number": why(lambda: Checkpoint().load(3, "here")),
    "no task": why(lambda: Checkpoint().list(task="F/1/start/2")),
    "no pathspec": why(lambda: Checkpoint().list(task="F/1")),
    "full namespace": why(lambda: Checkpoint().list(task="F/1/start/2", full_namespace=True)),
    "attempt": why(lambda: Checkpoint().list(task="F/1/start/2", attempt="first")),
}))
"""


def test_outside_of_a_task_what_cannot_work_says_why_and_what_to_do(local: Workspace) -> None:
    said = local.query(_CANNOT)
    assert "Checkpoint().list(task='Flow/run/step/task')" in said["list"]
    assert "does not belong to a step with @checkpoint" in said["save"]
    assert "Pass a path, or use Checkpoint(init_dir=True)" in said["save nothing"]
    assert "Pass a path, or use Checkpoint(init_dir=True)" in said["load nowhere"]
    assert "'some key' is not the key of a checkpoint" in said["load no key"]
    assert "is not the key of a checkpoint" in said["load up"]
    assert "There is no such checkpoint in the store" in said["load missing"]
    assert str(local.store) in said["load missing"]
    assert "3 is no reference to a checkpoint" in said["load a number"]
    assert "There is no flow 'F'" in said["no task"]
    assert "no checkpoint of 'F/1/start/2'" in said["no task"]
    assert "flow/run/step/task" in said["no pathspec"]
    assert "full_namespace" in said["full namespace"]
    assert "attempt='first' is not a number" in said["attempt"]


def test_a_subprocess_that_the_step_did_not_wait_for_is_told_so_and_what_it_saved_in_time_is_there(
    local: Workspace,
) -> None:
    pipe = local.root / "pipe"
    os.mkfifo(pipe)
    run = local.run_flow("outliving_flow", env={"PIPE": str(pipe)})
    (task,) = run.tasks()["start"]
    assert [c["metadata"] for c in task.artifacts["_task_checkpoints"]] == [{"who": "orphan"}]
    local.assert_clean()
    with open(pipe, "w"):
        pass  # Opened for reading and closed: the orphan goes on.
    wait_until((local.root / "pipe.said").exists, "the orphan has asked")
    said = json.loads((local.root / "pipe.said").read_text())
    for name, text in said.items():
        assert text.startswith(f"SpoolError: Attempt 0 of the task {task.pathspec} has ended: its spool is gone"), name
        assert f"Checkpoint().list(task='{task.pathspec}')" in text, name
    local.assert_clean()

"""The checkpoints of any task: ``Checkpoint().list(task=…)`` and ``async-ckpt list --task`` give one answer."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import REPOSITORY, Workspace, wait_until

COUNTER = REPOSITORY / "examples" / "counter_flow.py"

#: By way of asking, [attempt, counter, state] of what the API lists.
_ASK = """
import json, sys
from metaflow import Checkpoint, Task, namespace
namespace(None)
def seen(*arguments, **options):
    listed = Checkpoint().list(*arguments, **options)
    assert all(c.key == c["key"] and c.metadata == c["metadata"] for c in listed)
    return [[c.attempt, c.metadata["counter"], c["state"]] for c in listed]
task = sys.argv[1]
print(json.dumps({
    "last": seen(task=task), "0": seen(task=task, attempt=0), "1": seen(task=task, attempt="1"),
    "all": seen(task=task, attempt="all"),
    "object": seen(task=Task(task)), "object of 0": seen(task=Task(task, attempt=0)),
    "object of 0, asked for 1": seen(task=Task(task, attempt=0), attempt=1),
    "by place": seen(None, task, 0, False, True), "as objects": seen(task=task, as_dict=False),
    "other name": seen("other", task),
}))
"""


def ask(world: Workspace, pathspec: str) -> dict[str, Any]:
    """What the API says, having seen that the command line says the same."""
    said: dict[str, Any] = world.query(_ASK, pathspec)
    for attempt in ("last", "0", "1", "all"):
        options = [] if attempt == "last" else ["--attempt", attempt]
        done = world.run_command(["async-ckpt", "list", "--task", pathspec, *options, "--json"])
        shown = [[c["attempt"], c["metadata"]["counter"], c["state"]] for c in json.loads(done.stdout)]
        assert shown == said[attempt], attempt
    return said


def refused(world: Workspace, pathspec: str, **options: Any) -> str:
    """Why neither the command line nor the API lists a task."""
    done = world.run_command(["async-ckpt", "list", "--task", pathspec], check=False, **options)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    code = "import sys; from metaflow import Checkpoint; Checkpoint().list(task=sys.argv[1])"
    raised = world.run_python(code, pathspec, check=False, **options).stderr
    assert done.stderr.strip().removeprefix("async-ckpt list: ") in raised
    return done.stderr


@pytest.mark.long
@pytest.mark.timeout(300)
def test_attempts_of_a_task_and_of_its_clones_are_listed_alike_by_the_api_and_the_command_line(
    local: Workspace,
) -> None:
    run = local.run_flow(COUNTER)
    tasks = {step: task for step, (task,) in run.tasks().items()}
    before, after = [[0, n, "COMMITTED"] for n in range(9, 0, -1)], [[1, n, "COMMITTED"] for n in range(18, 9, -1)]
    expected = {
        "last": after, "0": before, "1": after, "all": after + before, "object": after, "object of 0": before,
        "object of 0, asked for 1": after, "by place": before, "as objects": after, "other name": [],
    }  # fmt: skip
    assert ask(local, tasks["train"].pathspec) == expected

    # A clone has one attempt, which is a copy of its origin's last.
    of_clone = {**expected, "object of 0": after}
    resumed = local.run_flow(COUNTER, "resume", "end", "--origin-run-id", run.pathspec.split("/")[1])
    again = local.run_flow(COUNTER, "resume", "end", "--origin-run-id", resumed.pathspec.split("/")[1])
    for clone in (resumed, again):
        (train,) = clone.tasks()["train"]
        assert train.pathspec != tasks["train"].pathspec
        assert ask(local, train.pathspec) == of_clone

    command = ["async-ckpt", "list", "--task", tasks["train"].pathspec]
    (first, *_) = json.loads(local.run_command([*command, "--json"]).stdout)
    assert first["created_at"].endswith("+00:00")
    row = local.run_command(command, env={"TZ": "Asia/Tokyo"}).stdout.splitlines()[1]
    at = datetime.fromisoformat(first["created_at"]).astimezone(timezone(timedelta(hours=9)))
    assert f" {at.isoformat(sep=' ', timespec='seconds')} " in row

    # A later step that saves nothing inherits them, as with metaflow-checkpoint.
    done = local.run_command(["async-ckpt", "list", "--task", tasks["end"].pathspec, "--json"])
    assert [[c["attempt"], c["metadata"]["counter"], c["state"]] for c in json.loads(done.stdout)] == after
    done = local.run_command([*command, "--attempt", "7"], check=False)
    assert done.returncode == 1
    assert "has no attempt 7. Its attempts are 0 to 1" in done.stderr
    said = refused(local, f"{tasks['train'].pathspec}0")
    assert f"There is no task '{tasks['train'].pathspec}0' in Metaflow's metadata (local@" in said


@pytest.mark.long
def test_what_is_no_task_is_an_error_that_says_what_is_missing_and_where_was_looked(local: Workspace) -> None:
    run = local.run_flow("save_flow").pathspec
    (task,) = (task.pathspec for task in local.tasks_of(run)["start"])
    for pathspec, missing in {
        "NoFlow/1/start/1": "no flow 'NoFlow'", f"{run}0/start/1": f"no run '{run}0'",
        f"{run}/train/1": f"no step '{run}/train'", f"{run}/start/77": f"no task '{run}/start/77'",
    }.items():  # fmt: skip
        said = refused(local, pathspec)
        assert f"There is {missing} in Metaflow's metadata (local@" in said
        assert f"no checkpoint of '{pathspec}' in the datastore ({local.store}" in said
        assert "METAFLOW_DEFAULT_METADATA" in said
    assert f"'{run}' is a run, and not a task" in refused(local, run)
    assert "is a step, and not a task" in refused(local, f"{run}/start")
    assert "is a flow, and not a task" in refused(local, run.split("/")[0])
    assert "is not the pathspec of a task" in refused(local, f"{task}/x")
    assert "is not the pathspec of a task" in refused(local, f"{run}//1")
    objects = """
import json, sys
from metaflow import Checkpoint, Run
def why(task):
    try:
        Checkpoint().list(task=task)
    except ValueError as error:
        return str(error)
print(json.dumps([why(Run(sys.argv[1])), why(3)]))
"""
    of_run, of_number = local.query(objects, run)
    assert f"'{run}' is a run, and not a task" in of_run
    assert "3 is no task" in of_number
    for attempt in ("first", "-1", "1.5", ""):
        done = local.run_command(["async-ckpt", "list", "--task", task, f"--attempt={attempt}"], check=False)
        assert done.returncode == 2
        assert f"attempt='{attempt}' is not a number" in done.stderr
    service = {"METAFLOW_DEFAULT_METADATA": "service", "METAFLOW_SERVICE_URL": "http://127.0.0.1:9/"}
    said = refused(local, task, env={**service, "METAFLOW_SERVICE_RETRY_COUNT": "1"})
    assert "Metaflow's metadata cannot be read" in said
    assert "http://127.0.0.1:9/" in said
    assert "METAFLOW_SERVICE_URL" in said


@pytest.mark.long
def test_a_task_that_only_the_store_knows_is_listed_from_there(s3: Workspace) -> None:
    run = s3.run_flow(COUNTER)
    (train,) = run.tasks()["train"]
    other = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(s3.root / "other")}  # Where local metadata lies.
    for options, count in (([], 9), (["--attempt", "0"], 9), (["--attempt", "all"], 18)):
        done = s3.run_command(["async-ckpt", "list", "--task", train.pathspec, "--json", *options], env=other)
        assert len(json.loads(done.stdout)) == count
    code = (
        "import sys; from metaflow import Checkpoint; print([c.attempt for c in Checkpoint().list(task=sys.argv[1])])"
    )
    assert s3.query(code, train.pathspec, env=other) == [1] * 9
    assert f"({s3.env['METAFLOW_DATASTORE_SYSROOT_S3']})" in refused(s3, "NoFlow/1/start/1", env=other)


def test_checkpoints_that_were_removed_from_the_store_are_not_listed_though_the_task_recorded_them(
    local: Workspace,
) -> None:
    run = local.run_flow("save_flow")
    (task,) = run.tasks()["start"]
    assert len(task.artifacts["_task_checkpoints"]) == 1
    shutil.rmtree(local.store / ".metaflow" / "mf.checkpoints")
    done = local.run_command(["async-ckpt", "list", "--task", task.pathspec])
    assert done.stdout == "no checkpoints\n"
    code = "import sys; from metaflow import Checkpoint; print(Checkpoint().list(task=sys.argv[1]))"
    assert local.query(code, task.pathspec) == []


@pytest.mark.long
def test_what_is_on_its_way_on_this_machine_is_listed_with_its_state_by_whoever_asks(s3: Workspace) -> None:
    running = s3.start_flow("on_its_way_flow")
    asked = s3.cwd / "asked"
    wait_until(lambda: asked.exists() or running.process.poll() is not None, "the step has saved")
    pathspec = asked.read_text()
    done = s3.run_command(["async-ckpt", "list", "--task", pathspec])
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[3] for row in rows] == ["NAME", "second", "first"]
    assert {row[0] for row in rows[1:]} <= {"ADMITTED", "UPLOADING"}
    # A spool that is not in the usual place has to be named.
    (spool,) = s3.spool_directories()
    elsewhere = {"METAFLOW_ASYNC_CKPT_SPOOL_DIR": str(s3.root / "nowhere")}
    done = s3.run_command(["async-ckpt", "list", "--task", pathspec, "--spool", str(spool), "--json"], env=elsewhere)
    assert [c["name"] for c in json.loads(done.stdout)] == ["second", "first"]
    (s3.cwd / "go").touch()
    run = running.finish()
    assert run.returncode == 0, run.output
    (task,) = run.tasks()["start"]
    # In the step: as another task, by the environment of the own one, and by another one's.
    assert task.artifacts["listed"] == [["second", True], ["first", True]]
    done = s3.run_command(["async-ckpt", "list", "--task", pathspec, "--json"])
    assert [[c["name"], c["state"]] for c in json.loads(done.stdout)] == [
        ["second", "COMMITTED"],
        ["first", "COMMITTED"],
    ]

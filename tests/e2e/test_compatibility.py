"""Over one datastore, metaflow-checkpoint 0.2.14 (the peer) lists and loads what we wrote, and we what it wrote."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import Workspace

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

#: For each task: what list() says, and the content of what is loaded by entry, by key alone, and by the newest entry.
_READ = """
import json, os, sys
from metaflow import Checkpoint, Task
def content(reference):
    with Checkpoint() as into:
        into.load(reference)
        found = {}
        for folder, _, names in os.walk(into.directory):
            for name in names:
                path = os.path.join(folder, name)
                with open(path) as file:
                    found[os.path.relpath(path, into.directory)] = json.load(file)
        return found
answer = {}
for pathspec in sys.argv[1:]:
    listed = Checkpoint().list(task=pathspec)
    answer[pathspec] = {
        "listed": listed,
        "by name": [c["key"] for c in Checkpoint().list(task=Task(pathspec, _namespace_check=False), name="packed")],
        "loaded": {c["name"]: content(c) for c in listed},
        "by key": {c["name"]: content(c["key"]) for c in listed},
    }
print(json.dumps(answer))
"""

FIELDS = {
    "size", "pathspec", "pathspec_hash", "attempt", "key", "type", "url", "name", "created_on", "metadata",
    "storage_format", "creation_context", "version_id",
}  # fmt: skip


def check_reads(workspace: Workspace, tasks: list[dict[str, Any]], reader: str) -> None:
    """``reader`` lists and loads all that the tasks saved."""
    answer = workspace.query(_READ, *(task["pathspec"] for task in tasks), python=reader)
    for task in tasks:
        found = answer[task["pathspec"]]
        text = task["text"]
        by_version = sorted(task["saved"], key=lambda c: -c["version_id"])
        assert [c["key"] for c in found["listed"]] == [c["key"] for c in by_version]
        for entry, saved in zip(found["listed"], by_version, strict=True):
            assert {field: entry[field] for field in FIELDS} == {field: saved[field] for field in FIELDS}
        assert found["by name"] == [c["key"] for c in by_version if c["name"] == "packed"]
        whole = {path: {"path": path, "text": text, "attempt": 0} for path in ("state.json", "deep/er/one", "deep/two")}
        expected = {"plain": whole, "packed": whole, "single": {"state.json": whole["state.json"]}}
        assert found["loaded"] == expected
        assert found["by key"] == expected


def tasks_of(workspace: Workspace, run: str) -> dict[str, dict[str, Any]]:
    """What the tasks of peer_flow saved and loaded, by what they were about."""
    found = {}
    for tasks in workspace.tasks_of(run).values():
        for task in tasks:
            if "saved" in task.artifacts and not task.pathspec.split("/")[2].startswith(("join", "end")):
                text = task.artifacts["text"]
                found[text] = {
                    "pathspec": task.pathspec,
                    **{name: task.artifacts[name] for name in ("saved", "loaded", "text")},
                }
    return found


def folder(key: str) -> str:
    """Flow, step, scope and task identifier."""
    return key.rsplit("/", 1)[0]


@pytest.mark.long
def test_plain_foreach_and_nested_tasks_have_the_same_identifiers_and_each_side_reads_the_other(
    local: Workspace, peer_python: str
) -> None:
    theirs = tasks_of(local, local.run_flow("peer_flow", python=peer_python).pathspec)
    ours = tasks_of(local, local.run_flow("peer_flow").pathspec)
    assert set(theirs) == set(ours)
    assert len(ours) == 5, "start, two outer, two inner"
    for text, task in ours.items():
        assert [folder(c["key"]) for c in task["saved"]] == [folder(c["key"]) for c in theirs[text]["saved"]]
        assert [c["pathspec_hash"] for c in task["saved"]] == [
            c["key"].rsplit("/", 1)[1].split(".")[0] for c in task["saved"]
        ]
        # Eager: each split found the peer's newest of the same split, whose file names it.
        assert theirs[text]["loaded"] is None
        assert task["loaded"] == {"path": "state.json", "text": text, "attempt": 0}
    assert len({folder(task["saved"][0]["key"]) for task in ours.values()}) == 5

    check_reads(local, list(ours.values()), peer_python)
    check_reads(local, list(theirs.values()), sys.executable)


_EAGER = {"CKPT_OPTIONS": '{"load_policy": "eager", "show_card": false}'}


@pytest.mark.long
def test_runs_of_both_sides_in_turn_go_on_from_each_others_newest(workspace: Workspace, peer_python: str) -> None:
    previous = None
    runs = []
    for python in (sys.executable, peer_python, sys.executable):
        run = workspace.run_flow("save_flow", python=python, env=_EAGER)
        assert f"Loaded: {previous}" in run.output
        previous = f"{run.pathspec.split('/')[1]}, attempt 0"
        runs.append(run)
    read = """
import json, os, sys
from metaflow import Checkpoint
found = []
for run in sys.argv[1:]:
    (entry,) = Checkpoint().list(task=f"{run}/start/1")
    with Checkpoint() as into:
        into.load(entry)
        found.append([open(os.path.join(into.directory, path)).read() for path in ("state", "deep/er/file")])
print(json.dumps(found))
"""
    expected = [[f"{run.pathspec.split('/')[1]}, attempt 0", "nested"] for run in runs]
    for reader in (sys.executable, peer_python):
        assert workspace.query(read, *(run.pathspec for run in runs), python=reader) == expected


def test_the_peer_loads_what_a_flow_of_ours_kept_as_an_artifact_a_plain_dict(
    local: Workspace, peer_python: str
) -> None:
    run = local.run_flow("save_flow", env={**_EAGER, "RETRIES": "1", "RAISES": "once"})
    code = """
import json, os, sys
from metaflow import Checkpoint, Task
kept = Task(sys.argv[1], _namespace_check=False)["reference"].data
with Checkpoint() as into:
    into.load(kept)
    names = sorted(os.listdir(into.directory))
print(json.dumps([type(kept).__name__, kept["name"], kept["attempt"], kept["metadata"], names]))
"""
    for python in (peer_python, sys.executable):
        read = local.query(code, f"{run.pathspec}/start/1", python=python)
        assert read == ["dict", "model", 1, {"attempt": 1}, ["deep", "state"]]


@pytest.mark.long
def test_attempts_of_a_task_that_failed_under_one_side_are_listed_attempt_by_attempt_by_the_other(
    local: Workspace, peer_python: str
) -> None:
    # The peer takes an attempt only together with a Task.
    listing = """
import json, sys
from metaflow import Checkpoint, Task
task = Task(sys.argv[1], _namespace_check=False)
def names(**options):
    return [[c["attempt"], c["name"], c["metadata"]] for c in Checkpoint().list(task=task, **options)]
print(json.dumps([names(attempt=0), names(attempt=1), names()]))
"""
    environment = {"CKPT_OPTIONS": '{"show_card": false}', "RETRIES": "1", "RAISES": "once"}
    for writer, reader in ((sys.executable, peer_python), (peer_python, sys.executable)):
        run = local.run_flow("save_flow", python=writer, env=environment)
        assert "attempt 0" in run.output.partition("Task is starting (retry)")[2]
        first, second = [0, "model", {"attempt": 0}], [1, "model", {"attempt": 1}]
        assert local.query(listing, f"{run.pathspec}/start/1", python=reader) == [[first], [second], [second]]

"""The main job: a flow that trains, fails at 9, resumes, and reaches 18."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

COUNTER = REPOSITORY / "examples" / "counter_flow.py"

#: Runs the flow as a notebook would.
_RUNNER = """
import json, sys
from metaflow import Runner
with Runner(sys.argv[1], pylint=False).run() as running:
    output = running.stdout + running.stderr
    print(json.dumps({"status": running.status, "output": output, "pathspec": running.run.pathspec}))
"""


class _PlainUnpickler(pickle.Unpickler):
    """Reads nothing that is not built of the standard library's types, as it is or as JSON."""

    def find_class(self, module: str, name: str) -> Any:
        known = {("builtins", "dict"): dict, ("json", "loads"): json.loads}
        if (module, name) in known:
            return known[module, name]
        raise AssertionError(f"The artifact needs {module}.{name} to be read")


def plain_artifact(store: Path, pathspec: str, attempt: int, name: str) -> Any:
    """An artifact as the bytes on the disk give it, without Metaflow and without this package."""
    flow = pathspec.split("/")[0]
    index = json.loads((store / pathspec / f"{attempt}.data.json").read_text())
    digest = index["objects"][name]
    packed = (store / flow / "data" / digest[:2] / digest).read_bytes()
    return _PlainUnpickler(io.BytesIO(gzip.decompress(packed))).load()


def test_the_counter_reaches_18_resumes_at_9_and_leaves_nothing_behind(workspace: Workspace) -> None:
    done = workspace.query(_RUNNER, str(COUNTER))
    assert done["status"] == "successful", done["output"]
    (train,) = workspace.tasks_of(done["pathspec"])["train"]

    assert train.artifacts["counter"] == 18
    assert train.artifacts["resumed_at"] == 9
    checkpoints = train.artifacts["_task_checkpoints"]
    assert [(c["attempt"], c["metadata"]["counter"]) for c in checkpoints] == [(1, n) for n in range(18, 9, -1)]
    newest = train.artifacts["_task_latest_checkpoint"]
    assert newest == checkpoints[0] == train.artifacts["last_checkpoint"]
    assert newest["pathspec"] == train.pathspec

    loaded = dict(train.metadata)
    assert loaded["checkpoint-load-pathspec"] == train.pathspec
    assert loaded["checkpoint-load-attempt"] == 0
    assert loaded["checkpoint-load-name"] == "mfchckpt"
    key = loaded["checkpoint-load-key"]
    assert key.endswith(".0.mfchckpt.8")
    output = done["output"]
    assert "Resumed at 9" in output
    assert f"[pathspec] {train.pathspec}" in output
    assert f"[key] {key}" in output
    assert re.search(r"\[created on\] \d{4}-\d\d-\d\dT", output)
    assert re.search(rf"\[url\] \S*{re.escape(key)}", output)
    assert output.count("Loading the following checkpoint") == 1

    workspace.assert_clean()


def test_references_kept_as_artifacts_are_plain_dicts_that_need_none_of_our_code(local: Workspace) -> None:
    run = local.run_flow(COUNTER)
    task = next((local.store / ".metaflow" / run.pathspec / "train").glob("[0-9]*"))
    pathspec = f"{run.pathspec}/train/{task.name}"
    store = local.store / ".metaflow"
    latest = plain_artifact(store, pathspec, 1, "_task_latest_checkpoint")
    everything = plain_artifact(store, pathspec, 1, "_task_checkpoints")
    kept = plain_artifact(store, pathspec, 1, "last_checkpoint")
    # The failed attempt recorded its own as well.
    before = plain_artifact(store, pathspec, 0, "_task_checkpoints")

    fields = {
        "size", "pathspec", "pathspec_hash", "attempt", "key", "type", "url", "name", "created_on", "metadata",
        "storage_format", "creation_context", "version_id", "created_at",
    }  # fmt: skip
    assert type(latest) is type(kept) is dict
    assert fields <= set(latest)
    assert latest == kept == everything[0]
    assert [c["metadata"]["counter"] for c in everything] == list(range(18, 9, -1))
    assert [c["metadata"]["counter"] for c in before] == list(range(9, 0, -1))

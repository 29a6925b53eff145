"""Flows with metaflow-checkpoint's ``@with_artifact_store``: their checkpoints go there, and are read from there."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import FlowRun, Workspace
from harness.s3.servers import BUCKET, SECRET_KEY, S3Server, rclone_server

__all__ = ["rclone_server"]

#: The first of them may make the environment.
pytestmark = pytest.mark.timeout(400)

#: rclone takes no bodies in chunks, which are how botocore sends its own checksums.
_PLAIN = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


class Place:
    """An artifact store on a server that checks signatures, or in a directory."""

    def __init__(self, workspace: Workspace, server: S3Server) -> None:
        self.workspace, self.server = workspace, server
        self.root = f"s3://{BUCKET}/artifacts-{uuid.uuid4().hex[:12]}"
        self.client_params: dict[str, Any] = {**server.client_params, "config": _PLAIN}

    def settings(self, kind: str = "s3", **params: Any) -> dict[str, Any]:
        """``type`` and ``config`` of the decorator."""
        if kind == "local":
            return {"type": kind, "config": {"root": str(self.workspace.root / "artifacts")}}
        return {"type": kind, "config": {"root": self.root, "client_params": {**self.client_params, **params}}}

    def keys(self) -> dict[str, str]:
        """The environment of a machine whose own keys are those of the server."""
        params = self.server.client_params
        return {
            "METAFLOW_S3_ENDPOINT_URL": params["endpoint_url"], "AWS_DEFAULT_REGION": params["region_name"],
            "AWS_ACCESS_KEY_ID": params["aws_access_key_id"], "AWS_SECRET_ACCESS_KEY": params["aws_secret_access_key"],
            "AWS_EC2_METADATA_DISABLED": "true", "METAFLOW_S3_RETRY_COUNT": "1", "METAFLOW_S3_WORKER_COUNT": "2",
        }  # fmt: skip

    def run(self, python: str, store: Mapping[str, Any], succeeds: bool = True, **env: str) -> FlowRun:
        environment = {"STORE": json.dumps(store), "SECRET": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true", **env}
        return self.workspace.run_flow("artifact_flow", python=python, env=environment, succeeds=succeeds)


@pytest.fixture
def place(local: Workspace, rclone_server: S3Server) -> Place:
    return Place(local, rclone_server)


def holds_the_secret(folder: Path) -> list[str]:
    done = subprocess.run(["grep", "-rlF", SECRET_KEY, str(folder)], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def assert_nothing_in_the_datastore(workspace: Workspace) -> None:
    assert not [path for path in workspace.store.rglob("*") if "mf.checkpoints" in path.name]


@pytest.mark.parametrize(
    ("kind", "way", "uploader"),
    [
        pytest.param("s3", "decorator", "process", marks=pytest.mark.long),
        pytest.param("s3", "mutator", "thread", marks=pytest.mark.long),
        ("local", "decorator", "process"),
        # "coreweave" cannot be had with this Metaflow: metaflow-checkpoint imports what is not there any more.
        pytest.param("s3-compatible", "subclass", "process", marks=pytest.mark.long),
    ],
)
def test_checkpoints_go_to_the_artifact_store_and_its_keys_nowhere(
    place: Place, both_python: str, kind: str, way: str, uploader: str
) -> None:
    store = place.settings(kind)
    options = {"WAY": way, "UPLOADER": uploader, "SUBPROCESS": "yes"}
    run = place.run(both_python, store, RAISES="once", **options)
    (start,), (end,) = run.tasks()["start"], run.tasks()["end"]
    assert start.attempt == 1
    assert start.artifacts["loaded"] == 0
    assert start.artifacts["listed"] == ["files", "packed", "shell"]
    assert start.artifacts["shell"]["state"] == "COMMITTED"
    assert end.artifacts["back"] == "attempt 1"
    urls = {entry["url"] for entry in start.artifacts["_task_checkpoints"]}
    assert len(urls) == 3
    assert all(url.startswith(f"{store['config']['root']}/mf.checkpoints/") for url in urls)
    # As metaflow-checkpoint notes it, for its artifact_store_from and others.
    assert set(start.metadata_of("artifact-store-ds-type")) == {"s3" if kind == "s3-compatible" else kind}
    assert set(start.metadata_of("artifact-store-ds-root")) == {store["config"]["root"]}
    assert_nothing_in_the_datastore(place.workspace)
    assert start.artifacts["leaks"] == []
    assert holds_the_secret(place.workspace.root) == []
    assert SECRET_KEY not in run.output
    place.workspace.assert_clean()


_READ = """
import json, sys
from metaflow import Checkpoint, Run, Task, artifact_store_from, namespace
namespace(None)
pathspec, config = sys.argv[1], json.loads(sys.argv[2])
task = Task(pathspec)
def read(reference):
    with Checkpoint() as loaded:
        loaded.load(reference)
        with open(f"{loaded.directory}/state") as file:
            return file.read()
found = []
for named in ({"task": task}, {"run": Run("/".join(pathspec.split("/")[:2]))}):
    with artifact_store_from(**named, config=config):
        listed = Checkpoint().list(task=task, attempt=0)
        found.append([sorted(entry["name"] for entry in listed), {read(entry) for entry in listed}.pop()])
        found[-1].append(read(listed[0]["key"]))
print(json.dumps(found))
"""


@pytest.mark.long
def test_what_is_in_an_artifact_store_is_read_within_artifact_store_from_by_both(
    place: Place, both_python: str, peer_python: str
) -> None:
    # A task that failed: its checkpoints are listed in the store, not in an artifact.
    run = place.run(both_python, place.settings(), RAISES="once")
    expected = [[["files", "packed"], "attempt 0", "attempt 0"]] * 2
    task, config = f"{run.pathspec}/start/1", json.dumps({"client_params": place.client_params})
    assert place.workspace.query(_READ, task, config, python=both_python) == expected
    # With client_params metaflow-checkpoint loads no "files": Metaflow puts into them what it cannot hand on as JSON.
    assert place.workspace.query(_READ, task, "null", python=peer_python, env=place.keys()) == expected


@pytest.mark.long
def test_a_step_with_a_datastore_of_its_own_reads_an_artifact_store_within_artifact_store_from(
    place: Place, both_python: str
) -> None:
    run = place.run(both_python, place.settings(), RAISES="once")
    own = place.workspace.root / "own"
    own.write_text("own")
    config = json.dumps({"client_params": place.client_params})
    environment = {"TASK": f"{run.pathspec}/start/1", "CONFIG": config, "OWN": str(own)}
    reader = place.workspace.run_flow("reader_flow", python=both_python, env=environment)
    (start,) = reader.tasks()["start"]
    assert start.artifacts["names"] == ["files", "packed"]
    assert start.artifacts["read"] == {
        "by entry": "attempt 0", "by key": "attempt 0", "own": "own", "own afterwards": "own",
    }  # fmt: skip
    assert start.artifacts["_task_checkpoints"][0]["url"].startswith(str(place.workspace.store))


def test_a_flow_without_one_that_is_run_by_a_step_with_one_keeps_its_own_datastore(
    place: Place, both_python: str
) -> None:
    """It inherits the variable, and has no such decorator."""
    elsewhere = place.workspace.root / "of the outer flow"
    inherited = json.dumps({"type": "local", "config": {"root": str(elsewhere)}})
    environment = {"METAFLOW_CHECKPOINT_ARTIFACT_STORE_CONFIG": inherited}
    run = place.workspace.run_flow("moved_flow", python=both_python, env=environment)
    (start,) = run.tasks()["start"]
    assert start.artifacts["saved"]["url"].startswith(str(place.workspace.store))
    assert start.metadata_of("artifact-store-ds-root") == []
    assert not elsewhere.exists()


_READ_WITHOUT = """
import json, sys
from async_ckpt.errors import CheckpointError
from metaflow import Checkpoint
try:
    listed = Checkpoint().list(task=sys.argv[1], attempt=0)
    with Checkpoint() as loaded:
        loaded.load(listed[0])
        with open(f"{loaded.directory}/state") as file:
            print(json.dumps([sorted(entry["name"] for entry in listed), file.read()]))
except CheckpointError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.long
def test_without_the_context_the_noted_store_is_read_with_the_machines_own_keys(place: Place, both_python: str) -> None:
    run = place.run(both_python, place.settings(), RAISES="once")
    task = f"{run.pathspec}/start/1"
    for reader in (both_python, None):  # None: the tests' own, where metaflow-checkpoint is not installed.
        python = {"python": reader} if reader else {}
        assert place.workspace.query(_READ_WITHOUT, task, env=place.keys(), **python) == [
            ["files", "packed"], "attempt 0",
        ]  # fmt: skip
    refused = place.workspace.query(_READ_WITHOUT, task, env={**place.keys(), "AWS_SECRET_ACCESS_KEY": "another"})
    assert place.root in refused
    assert "SignatureDoesNotMatch" in refused or "AccessDenied" in refused


@pytest.mark.long
@pytest.mark.parametrize("uploader", ["process", pytest.param("thread", marks=pytest.mark.long)])
def test_a_store_that_refuses_its_keys_fails_the_step_by_name_and_a_retry_with_new_ones_brings_all_in(
    place: Place, both_python: str, uploader: str
) -> None:
    wrong = place.settings(aws_secret_access_key="a-wrong-one-for-tests")
    failed = place.run(both_python, wrong, succeeds=False, UPLOADER=uploader)
    assert "SignatureDoesNotMatch" in failed.output
    assert f"go to the artifact store {place.root}" in failed.output
    assert "in the config of @with_artifact_store" in failed.output
    assert "a-wrong-one-for-tests" not in failed.output
    assert any(name.endswith("/state") for name in place.workspace.spooled()), "What was saved stays in the spool"

    renewed = json.dumps({"aws_secret_access_key": SECRET_KEY})
    run = place.run(both_python, wrong, UPLOADER=uploader, RENEWS=renewed)
    assert "Task is starting (retry)" in run.output
    (start,) = run.tasks()["start"]
    assert start.artifacts["loaded"] == 0
    assert sorted(entry["attempt"] for entry in start.artifacts["_task_checkpoints"]) == [1, 1]
    config = json.dumps({"client_params": place.client_params})
    found = place.workspace.query(_READ, start.pathspec, config, python=both_python)
    assert found[0] == [["files", "packed"], "attempt 0", "attempt 0"], "Those of the first attempt are in the store"


_REFUSED = [
    ({"type": "gs", "config": {"root": "gs://bucket/x"}}, "the type 'gs'"),
    ({"type": "gcs", "config": {"root": "gs://bucket/x"}}, "the type 'gcs'"),
    ({"type": "azure", "config": {"root": "container/x"}}, "the type 'azure'"),
    ({"type": "floppy", "config": {"root": "a:"}}, "the type 'floppy'"),
    ({"type": "s3", "config": {"client_params": {}}}, "cannot have the root None"),
    ({"type": "s3", "config": {"root": "/a/directory"}}, "cannot have the root '/a/directory'"),
    ({"type": "local", "config": {"root": "s3://bucket/x"}}, "cannot have the root 's3://bucket/x'"),
    ({"type": "s3", "config": {"root": "s3://bucket/x", "secret_key": SECRET_KEY}}, "cannot be used: secret_key"),
    ({"type": "local", "config": {"root": "/x", "role_arn": "a"}}, "cannot be used: role_arn"),
    ({"type": "s3", "config": {"root": "s3://bucket/x", "client_params": "us-east-1"}}, "used: client_params"),
]


@pytest.mark.parametrize(
    ("store", "said"),
    [
        pytest.param(*refused, marks=[] if number % 4 == 0 else pytest.mark.long)
        for number, refused in enumerate(_REFUSED)
    ],
)
def test_what_cannot_be_served_is_refused_when_the_flow_starts(
    place: Place, both_python: str, store: dict[str, Any], said: str
) -> None:
    run = place.run(both_python, store, succeeds=False)
    assert said in run.output
    assert "Traceback" not in run.output
    assert "Task is starting" not in run.output
    assert SECRET_KEY not in run.output

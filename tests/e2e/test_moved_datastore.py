"""A kept reference loads after the datastore was moved, and in a task whose datastore is another one."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from harness.flow_runs.metaflow_env import FlowRun, Workspace
from harness.s3.gated_s3 import GatedS3

pytestmark = pytest.mark.timeout(400)

_LOAD = """
import json, sys
from async_ckpt.errors import CheckpointError
from metaflow import Checkpoint
found = []
for reference in json.loads(sys.argv[1]):
    try:
        with Checkpoint() as loaded:
            loaded.load(reference)
            with open(f"{loaded.directory}/state") as file:
                found.append(file.read())
    except CheckpointError as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


def saved(run: FlowRun) -> list[dict[str, Any]]:
    """The references that the flow's first step has kept."""
    (task,) = run.tasks()["start"]
    return [task.artifacts["saved"], task.artifacts["packed"]]


def load(workspace: Workspace, references: Any, **env: str) -> Any:
    return workspace.query(_LOAD, json.dumps(references), env=env)


def test_after_a_local_datastore_was_moved_its_references_load_from_the_configured_one(local: Workspace) -> None:
    references = saved(local.run_flow("moved_flow"))
    new = local.root / "elsewhere"
    local.store.rename(new)
    assert load(local, references, METAFLOW_DATASTORE_SYSROOT_LOCAL=str(new)) == ["moved", "moved"]
    kind, said = load(local, references[:1], METAFLOW_DATASTORE_SYSROOT_LOCAL=str(local.root / "nowhere"))[0]
    assert kind == "NotFound"
    for place in (local.store, local.root / "nowhere"):
        assert f"{place}/.metaflow: " in said, "All places are named"
    assert not local.store.exists(), "Looking makes nothing"
    assert not (local.root / "nowhere").exists()


@pytest.mark.long
def test_its_own_place_goes_first_outside_of_a_task(local: Workspace) -> None:
    """Under the same key, the configured datastore has another content."""
    references = saved(local.run_flow("moved_flow"))
    copy = local.root / "copy"
    local.run_command(["cp", "-r", str(local.store), str(copy)])
    (file,) = copy.rglob("*.files.0/state")
    file.write_text("other")
    assert load(local, references, METAFLOW_DATASTORE_SYSROOT_LOCAL=str(copy)) == ["moved", "moved"]
    key = load(local, [references[0]["key"]], METAFLOW_DATASTORE_SYSROOT_LOCAL=str(copy))[0]
    assert key[0] == "IntegrityError", "A key alone is looked for in the configured one"


@pytest.mark.long
@pytest.mark.parametrize("writer", ["ours", "peer"])
def test_a_relative_datastore_is_read_where_it_is_and_where_it_is_configured(
    local: Workspace, peer_python: str, writer: str
) -> None:
    python = peer_python if writer == "peer" else sys.executable
    relative = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": "data/store"}
    (local.cwd / "data" / "store").mkdir(parents=True)
    moves = {"MOVES": "yes"} if writer == "ours" else {}
    run = local.run_flow("moved_flow", python=python, env={**relative, **moves})
    references = local.query(_KEPT, run.pathspec, env=relative)
    absolute = str(local.cwd / "data" / "store")
    if writer == "ours":
        assert all(reference["url"].startswith(f"{absolute}/.metaflow/") for reference in references)
    assert load(local, references, METAFLOW_DATASTORE_SYSROOT_LOCAL="data/store") == ["moved", "moved"]
    assert load(local, references, METAFLOW_DATASTORE_SYSROOT_LOCAL=str(local.root / "none")) == ["moved", "moved"]
    local.cwd = local.root  # A relative address leads nowhere from here.
    assert load(local, references, METAFLOW_DATASTORE_SYSROOT_LOCAL=absolute) == ["moved", "moved"]


_KEPT = """
import json, sys
from metaflow import Run, namespace
namespace(None)
task = Run(sys.argv[1])["start"].task
print(json.dumps([dict(task["saved"].data), dict(task["packed"].data)]))
"""


@pytest.mark.long
def test_a_reference_of_another_datastore_loads_in_a_task(local: Workspace, s3: Workspace) -> None:
    on_disk = saved(local.run_flow("moved_flow", env={"TEXT": "on disk"}))
    on_s3 = saved(s3.run_flow("moved_flow", env={"TEXT": "on S3"}))
    run = s3.run_flow("moved_flow", env={"OTHER": json.dumps([*on_disk, *on_s3])})
    assert run.tasks()["end"][0].artifacts["read"] == ["on disk"] * 2 + ["on S3"] * 2
    settings = {name: s3.env[name] for name in s3.env if name.startswith(("AWS_", "METAFLOW_S3_"))}
    run = local.run_flow("moved_flow", env={"OTHER": json.dumps([*on_disk, *on_s3]), **settings})
    assert run.tasks()["end"][0].artifacts["read"] == ["on disk"] * 2 + ["on S3"] * 2


@pytest.mark.long
def test_in_a_task_the_moved_datastores_references_load(s3: Workspace) -> None:
    references = saved(s3.run_flow("moved_flow"))
    for reference in references:
        reference["url"] = reference["url"].replace("s3://", "s3://once-")
    gone = {**references[0], "url": f"/gone/{references[0]['key']}"}
    foreign = {**references[0], "url": f"gs://bucket/{references[0]['key']}"}
    run = s3.run_flow("moved_flow", env={"OTHER": json.dumps([*references, gone, foreign])})
    assert run.tasks()["end"][0].artifacts["read"] == ["moved"] * 4


@pytest.mark.long
def test_after_a_bucket_was_renamed_or_its_prefix_changed_its_references_load(s3: Workspace, gate: GatedS3) -> None:
    references = saved(s3.run_flow("moved_flow"))
    old = urlsplit(s3.env["METAFLOW_DATASTORE_SYSROOT_S3"]).netloc
    new = urlsplit(gate.new_bucket()["METAFLOW_DATASTORE_SYSROOT_S3"]).netloc
    client = boto3.client(
        "s3", endpoint_url=gate.url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    for item in client.list_objects_v2(Bucket=old)["Contents"]:
        key = item["Key"].replace("metaflow/", "another/prefix/", 1)
        client.copy_object(Bucket=new, Key=key, CopySource={"Bucket": old, "Key": item["Key"]})
        client.delete_object(Bucket=old, Key=item["Key"])
    moved = {"METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{new}/another/prefix"}
    assert load(s3, references, **moved) == ["moved", "moved"]
    client.delete_bucket(Bucket=old)
    client.close()
    assert load(s3, references, **moved) == ["moved", "moved"]
    kind, said = load(s3, references[:1])[0]
    assert kind == "StoreError"
    assert "NoSuchBucket" in said
    kind, said = load(s3, references[:1], METAFLOW_DATASTORE_SYSROOT_S3=f"s3://{new}/nothing")[0]
    assert kind == "NotFound"
    assert f"s3://{old}/metaflow: " in said
    assert f"s3://{new}/nothing: " in said


@pytest.mark.long
def test_an_outage_of_the_own_place_is_not_taken_for_not_there(s3: Workspace, gate: GatedS3) -> None:
    references = saved(s3.run_flow("moved_flow"))
    gate.close_gate("GET,HEAD:fail")
    limits = {"METAFLOW_S3_RETRY_COUNT": "0", "METAFLOW_ASYNC_CKPT_STORE_ATTEMPTS": "1"}
    kind, said = load(s3, references[:1], METAFLOW_DEFAULT_DATASTORE="local", **limits)[0]
    assert kind == "GaveUp", "A TransientStoreError, after all attempts"
    assert "SlowDown" in said
    assert str(s3.store) not in said, "No other place was asked"

"""The same flow with its datastore on each server there is: it saves, fails, goes on, and ends green."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.flow_runs.metaflow_env import FLOWS, Workspace
from harness.s3.ceph import ceph_server
from harness.s3.servers import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    S3Server,
    moto_server,
    rclone_tls_server,
)

__all__ = ["ceph_server", "moto_server", "rclone_tls_server"]

#: Loads all checkpoints of a task in another process: number -> (what it should hold, what it holds).
_LOAD = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
from metaflow import Checkpoint
from stores_flow import digests
found = {}
for attempt in (0, 1):
    for reference in Checkpoint().list(task=sys.argv[1], attempt=attempt):
        assert reference["state"] == "COMMITTED", reference
        number = reference["metadata"]["number"]
        Checkpoint().load(reference, str(number))
        found[number] = [attempt, reference["metadata"]["digests"] == digests(str(number))]
print(json.dumps(found))
"""


@pytest.fixture(params=["moto", *(pytest.param(name, marks=pytest.mark.long) for name in ("rclone_tls", "ceph"))])
def server(request: pytest.FixtureRequest) -> S3Server:
    found = request.getfixturevalue(f"{request.param}_server")
    return found if isinstance(found, S3Server) else replace(found[0], certificate=found[1])


@pytest.fixture
def stored(tmp_path: Path, server: S3Server) -> Iterator[Workspace]:
    """A Metaflow whose datastore is there."""
    settings = {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/flows-{uuid.uuid4().hex[:12]}",
        "METAFLOW_S3_ENDPOINT_URL": server.url,
        "METAFLOW_S3_WORKER_COUNT": "2",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # rclone takes no bodies in chunks, which are how botocore sends its own checksums.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    if server.certificate:
        settings["METAFLOW_S3_VERIFY_CERTIFICATE"] = server.certificate
    workspace = Workspace(tmp_path / "flow", settings)
    yield workspace
    workspace.kill_leftovers()


@pytest.mark.long
@pytest.mark.parametrize("client", ["aiobotocore", pytest.param("boto3", marks=pytest.mark.long)])
def test_a_flow_that_fails_goes_on_from_its_last_checkpoint_and_all_of_them_can_be_loaded(
    stored: Workspace, client: str
) -> None:
    if client == "boto3":
        stored.take_away("aiobotocore", "aiohttp")
    run = stored.run_flow("stores_flow")
    (start,), (end,) = run.tasks()["start"], run.tasks()["end"]
    assert start.attempt == 1
    assert start.artifacts["resumed_after"] == 1
    assert ("Uploads go over boto3" in run.output) is (client == "boto3"), run.output
    assert end.artifacts["last"] == start.artifacts["reference"]["metadata"]["digests"]
    folder = str(FLOWS)
    found = stored.query(_LOAD, start.pathspec, folder)
    assert found == {str(number): [int(number > 1), True] for number in range(4)}
    stored.assert_clean()

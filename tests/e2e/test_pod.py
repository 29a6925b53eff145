"""Steps on Kubernetes: Metaflow's own job, command and code package, in a pod with nothing but boto3 and requests."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from async_ckpt.card.page import data_of
from async_ckpt.card.rows import rows_of
from harness.flow_runs.metaflow_env import wait_until
from harness.flow_runs.pods import Pods, image, why_no_pods
from harness.s3.servers import BUCKET, S3Server, moto_server

__all__ = ["moto_server"]

_WHY_NOT = why_no_pods()
pytestmark = [
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT or "there can be pods"),
    pytest.mark.timeout(400),  # The first time, pip makes the image.
]

_numbers = itertools.count()

_LOGS = """
import json, sys
from metaflow import Task, namespace
namespace(None)
print(json.dumps(Task(sys.argv[1]).stdout))
"""


class Store:
    """What is in the bucket, past Metaflow and this library."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self._client = boto3.client("s3", **server.client_params)
        self._prefix = prefix

    def committed(self, attempt: int) -> list[int]:
        """Counters of the checkpoints of an attempt that a reader of the store sees."""
        found = []
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self._prefix)
        for item in (item for page in pages for item in page.get("Contents", ())):
            folder, _, name = item["Key"].rpartition("/")
            if "/checkpoints/metadata/" in folder and name.startswith(f"{attempt}.") and name.endswith(".metadata"):
                body = self._client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"]
                with body:
                    found.append(json.load(body)["metadata"]["counter"])
        return sorted(found)

    def card(self) -> dict[str, Any]:
        """The data of the one card there is."""
        return data_of(self._read("/cards/checkpoint-"))

    def is_on_card(self, attempt: int) -> bool:
        """Whether a viewer of the card is shown checkpoints of an attempt."""
        text = self._read("/runtime/checkpoint-")
        return bool(text) and any(row["attempt"] == attempt for row in rows_of(json.loads(text)["data"]))

    def _read(self, part: str) -> str:
        """The object with this in its key; empty: there is none."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self._prefix}/mf.cards/").get("Contents", ())
        keys = [item["Key"] for item in found if part in item["Key"]]
        if not keys:
            return ""
        (key,) = keys
        body = self._client.get_object(Bucket=BUCKET, Key=key)["Body"]
        with body:
            return body.read().decode()

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def prefix() -> str:
    return f"pods/{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def store(moto_server: S3Server, prefix: str) -> Iterator[Store]:
    found = Store(moto_server, prefix)
    yield found
    found.close()


@pytest.fixture
def pods(tmp_path: Path, moto_server: S3Server, prefix: str) -> Pods:
    return Pods(tmp_path, moto_server, f"{BUCKET}/{prefix}")


@pytest.mark.long
@pytest.mark.parametrize(("python", "reason"), [("bare", "aiobotocore is not installed"), ("aiobotocore", None)])
def test_a_pod_that_is_killed_is_followed_by_one_that_resumes_from_its_last_checkpoint(
    pods: Pods, store: Store, python: str, reason: str | None
) -> None:
    flow = pods.start_flow("pod_flow", image(python))
    try:
        wait_until(lambda: flow.process.poll() is not None or len(store.committed(0)) >= 4, "checkpoints are committed")
        wait_until(lambda: flow.process.poll() is not None or store.is_on_card(0), "the card shows them")
        pods.kill(0)
        run = flow.finish()
    finally:
        flow.kill()
    assert run.returncode == 0, run.output + pods.output()
    last = max(store.committed(0))

    (task,) = run.tasks()["start"]
    assert task.successful
    assert task.attempt == 1
    assert task.artifacts["resumed_at"] == last
    assert task.artifacts["intact"] is True
    # All of the second attempt is there, though its pod was gone a moment after the step.
    assert store.committed(1) == list(range(last + 1, last + 6))
    assert len(task.artifacts["_task_checkpoints"]) == 5
    card = store.card()
    assert (card["state"], card["loaded"]["attempt"]) == ("ended", 0)
    assert {row["attempt"] for row in rows_of(card)} == {0, 1}
    assert task.artifacts["status"]["failed"] == []  # The command line works from the code package.

    said = about_the_store(pods, task.pathspec)
    if reason is None:
        assert said == []
    else:
        (line,) = said
        assert reason in line
        assert "@pypi(packages=" in line


def about_the_store(pods: Pods, pathspec: str) -> list[str]:
    """Lines of a task's log that say how it reaches S3."""
    return [line for line in pods.workspace.query(_LOGS, pathspec).splitlines() if "boto3 in threads" in line]


@pytest.mark.long
def test_a_pod_whose_machine_is_taken_away_brings_in_what_it_saved(pods: Pods, store: Store) -> None:
    """Here with an aiobotocore that does not fit what the pod's bootstrap brought."""
    flow = pods.start_flow("pod_flow", image("misfit"))
    try:
        wait_until(lambda: flow.process.poll() is not None or store.committed(0), "a checkpoint is committed")
        pods.terminate(0)
        before = max(store.committed(0))
        wait_until(lambda: flow.process.poll() is not None or max(store.committed(0)) > before, "the pod goes on")
        pods.notify(0)
        wait_until(lambda: flow.process.poll() is not None or "Stopped at" in pods.output(), "the flow sees the notice")
        pods.terminate_step(0, "pod_flow")
        run = flow.finish()
    finally:
        flow.kill()
    assert run.returncode == 0, run.output + pods.output()
    said = (pods.started()[0] / "output").read_text()
    assert "SIGTERM: saved checkpoints are brought in" in said
    assert "All that was saved is in the store" in said
    (task,) = run.tasks()["start"]
    committed = store.committed(0)
    assert f"Stopped at {committed[-1]}\n" in said
    assert committed == list(range(1, len(committed) + 1))
    assert task.artifacts["resumed_at"] == committed[-1]
    (line,) = about_the_store(pods, task.pathspec)
    assert "aiobotocore 2.13.0 needs botocore" in line

"""A multipart upload that is interrupted goes on where it was: what arrived does not arrive again."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.stores.base import StoreSpec
from harness.s3.gated_s3 import GatedS3
from harness.tasks.task import Task, agent_pid, content, is_alive, journal_lines, kill, uploader_pid, wait_until

PART = CHUNK_BYTES
PARTS = 4
HELD = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedS3]:
    with GatedS3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def on_s3(task: Task, server: GatedS3, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task whose store is the server, with small parts, one of which hangs."""
    settings = server.new_bucket()
    keys = {
        "aws_access_key_id": settings["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": settings["AWS_SECRET_ACCESS_KEY"],
    }  # fmt: skip
    parameters = {"endpoint_url": server.url, "region_name": settings["AWS_DEFAULT_REGION"], **keys}
    task.store = StoreSpec("metaflow-s3", settings["METAFLOW_DATASTORE_SYSROOT_S3"], {"client_params": parameters})
    task.set(part_bytes=PART, reply_timeout_s=30)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server.close_gate(f"PUT:hang:partNumber={HELD}")
    return task


@pytest.mark.parametrize(
    ("victims", "storage_format"),
    [
        pytest.param(*cell, marks=pytest.mark.long if number else [])
        for number, cell in enumerate(itertools.product(["both", "uploader", "agent"], ["files", "tar"]))
    ],
)
def test_parts_that_arrived_do_not_arrive_again(
    on_s3: Task, server: GatedS3, victims: str, storage_format: str
) -> None:
    checkpointer = on_s3.start()
    data = content(1, PARTS * PART - 4096)
    (on_s3.work / "weights").write_bytes(data)
    reference = checkpointer.save(on_s3.work, storage_format=storage_format)

    def arrived() -> list[int]:
        return sorted(line["part"] for line in journal_lines(checkpointer) if "part" in line)

    others = [number for number in range(1, PARTS + 1) if number != HELD]
    wait_until(lambda: arrived() == others, "the agent knows of all parts but the one that hangs")
    uploader, agent = uploader_pid(checkpointer), agent_pid(checkpointer)
    for victim in {"uploader": [uploader], "agent": [agent], "both": [uploader, agent]}[victims]:
        kill(victim)
    wait_until(lambda: not is_alive(uploader), "the uploader is gone")
    server.open_gate()
    reference.wait(60)
    place = reference["url"].removeprefix("s3:/")
    sent = Counter(
        int(match[1])
        for address in server.answered("PUT")
        if place in address and (match := re.search(r"partNumber=(\d+)", address))
    )
    assert [sent[number] for number in others] == [1] * len(others)
    begun = [address for address in server.answered("POST") if place in address and "uploads" in address]
    assert len(begun) == 1
    checkpointer.flush(60)
    checkpointer.load(dict(reference), str(on_s3.base / "loaded"))
    assert (on_s3.base / "loaded" / "weights").read_bytes() == data


def test_an_unchanged_file_is_copied_on_s3(on_s3: Task, server: GatedS3) -> None:
    server.open_gate()
    checkpointer = on_s3.start()
    data = content(1, 2 * PART)
    path = on_s3.work / "weights"
    path.write_bytes(data)
    checkpointer.save(on_s3.work).wait(60)

    def settled() -> bool:
        (on_s3.base / "probe").write_bytes(b"")
        return (on_s3.base / "probe").stat().st_mtime_ns > path.stat().st_mtime_ns + 110_000_000

    wait_until(settled, "the file's time has passed")
    for _ in range(2):
        reference = checkpointer.save(on_s3.work).wait(60)
    assert checkpointer.status()["bytes_copied"] in (len(data), 2 * len(data))
    checkpointer.load(dict(reference), str(on_s3.base / "loaded"))
    assert (on_s3.base / "loaded" / "weights").read_bytes() == data

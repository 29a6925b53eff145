"""Saves through a network and a store that fail in every way there is: all of them arrive, whole and in order."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from async_ckpt.capture.content import CapturedFile
from async_ckpt.config import CHUNK_BYTES, Config
from async_ckpt.spool.journal import COMMITTED, UPLOADED
from async_ckpt.stores import catalog, open_store, retry
from async_ckpt.stores.base import StoreSpec
from async_ckpt.stores.local import LocalStore
from async_ckpt.task import restore
from harness.s3.fault_server import FaultServer, Turn
from harness.s3.memory_s3 import MemoryS3
from harness.s3.proxy import CUT_OFF, KINDS, LOST, REFUSED, RESET, Proxy
from harness.s3.servers import BUCKET, S3Server, rclone_server
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import TASK, Task, content, wait_until
from tests.spread import first_of

__all__ = ["rclone_server"]

#: So large that it goes up as a multipart.
LARGE = CHUNK_BYTES + (1 << 20)

_numbers = itertools.count()


@pytest.fixture
def proxy(rclone_server: S3Server) -> Iterator[Proxy]:
    with Proxy(rclone_server.url, seed=3) as running:
        yield running


@pytest.fixture
def on_s3(task: Task, proxy: Proxy, rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task that reaches the server through the proxy."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    parameters = {**rclone_server.client_params, "endpoint_url": proxy.url}
    root = f"s3://{BUCKET}/faults/{os.getpid()}-{next(_numbers)}"
    task.store = StoreSpec("metaflow-s3", root, {"client_params": parameters})
    return task


def past(proxied: StoreSpec, server: S3Server) -> StoreSpec:
    """The same store, without the proxy."""
    return StoreSpec(proxied.kind, proxied.root, {"client_params": server.client_params})


def assert_stored(store: StoreSpec, folder: Path, sizes: Mapping[int, int]) -> None:
    """The store has exactly the saves with these numbers, each with its content of that many bytes, and knows which is
    the newest.
    """

    async def load_all() -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        opened = open_store(store, Config())
        try:
            found = await catalog.list_references(opened, TASK.task_folder, Config())
            for data in found:
                await restore.find_and_load(opened, data, str(folder / str(data["metadata"]["number"])), Config())
            return found, await catalog.newest_of_task(opened, TASK, Config())
        finally:
            await opened.aclose()

    found, newest = anyio.run(load_all)
    found.sort(key=lambda data: int(data["version_id"]))
    assert [data["metadata"]["number"] for data in found] == list(sizes)
    for number, size in sizes.items():
        assert (folder / str(number) / "weights").read_bytes() == content(number, size)
    assert newest == found[-1]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in (RESET, LOST) else pytest.mark.long) for kind in KINDS]
)
def test_saves_arrive_and_are_loaded_whatever_fails(
    on_s3: Task, proxy: Proxy, rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sizes = {0: BIG, 1: LARGE, 2: BIG}
    checkpointer = on_s3.start()
    proxy.set(share=0.2, kinds=(kind,))
    for number, size in sizes.items():
        save(checkpointer, on_s3, number, size)
    checkpointer.flush(90)
    assert proxy.counts()[kind], "nothing failed"
    monkeypatch.setattr(retry, "STORE_FIRST_PAUSE_S", 0.01)
    assert_stored(on_s3.store, on_s3.base / "through", sizes)
    assert_stored(past(on_s3.store, rclone_server), on_s3.base / "past", sizes)


#: Everything that a checkpoint writes, by what its requests begin with.
WRITES = {
    "a file": "PUT .*/artifacts/",
    "the manifest": "PUT .*/manifests/",
    "what begins": "PUT .*/begun/",
    "the step's metadata": r"PUT .*/artifact_metadata/.*\.metadata ",
    "the task's metadata": r"PUT .*/checkpoints/metadata/.*\.metadata ",
    "what is the latest": "PUT .*/latest ",
}


def test_what_was_done_and_not_answered_is_done_again_and_nobody_sees_it(
    on_s3: Task, proxy: Proxy, rclone_server: S3Server
) -> None:
    checkpointer = on_s3.start()
    for number, only in enumerate(WRITES.values()):
        before = proxy.counts()[LOST]
        proxy.set(share=1, kinds=(LOST,), only=only)
        save(checkpointer, on_s3, number)
        wait_until(lambda before=before: proxy.counts()[LOST] >= before + 2, f"answers to {only} are lost")
        proxy.set(share=0)
        checkpointer.flush(60)
    assert_stored(past(on_s3.store, rclone_server), on_s3.base / "past", dict.fromkeys(range(len(WRITES)), BIG))


def test_an_outage_keeps_no_save_waiting_and_loses_none(on_s3: Task, proxy: Proxy, rclone_server: S3Server) -> None:
    checkpointer = on_s3.start()
    proxy.set(bytes_s=LARGE)
    save(checkpointer, on_s3, 0, LARGE)
    wait_until(lambda: checkpointer.status()["pending_bytes"] < LARGE, "an upload is in its middle")
    with proxy.outage():
        late = [save(checkpointer, on_s3, number) for number in range(1, 6)]
        wait_until(lambda: proxy.counts()[REFUSED] >= 3, "the agent tries in vain")
        assert not any(reference.done() for reference in late)
    assert proxy.counts()[CUT_OFF], "there was nothing to cut"
    proxy.set(bytes_s=0)
    checkpointer.flush(90)
    sizes = {0: LARGE, **dict.fromkeys(range(1, 6), BIG)}
    assert_stored(past(on_s3.store, rclone_server), on_s3.base / "past", sizes)


@pytest.fixture
def on_faulty_s3(task: Task) -> Iterator[FaultServer]:
    with FaultServer(MemoryS3()) as server:
        parameters = dict(S3Server(server.url, 0).client_params)
        task.store = StoreSpec("metaflow-s3", f"s3://{BUCKET}/root", {"client_params": parameters})
        yield server
        task.close()


def test_what_is_committed_is_known_to_be_though_the_next_commit_is_never_answered(
    task: Task, on_faulty_s3: FaultServer
) -> None:
    may_begin, is_hanging, may_end = threading.Event(), threading.Event(), threading.Event()

    def inject(turn: Turn) -> bool:
        if turn.request.method == "PUT" and TASK.task_folder in turn.request.key:
            if turn.request.key.endswith("/0.mfchckpt.0.metadata"):
                may_begin.wait(60)  # The others get into one batch meanwhile.
            elif turn.request.key.endswith("/0.mfchckpt.3.metadata"):
                is_hanging.set()
                may_end.wait(60)
        turn.serve()
        return True

    on_faulty_s3.inject = inject
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(5)]
    wait_until(lambda: {r.state for r in references[1:]} == {UPLOADED}, "all others are uploaded")
    may_begin.set()
    assert is_hanging.wait(60)
    for reference in references[:3]:
        reference.wait(30)
    assert references[3].state == UPLOADED
    may_end.set()
    checkpointer.flush(60)


@pytest.mark.parametrize("what", first_of(["commit", "upload"]))
def test_newer_ones_are_committed_though_one_is_never_answered(
    task: Task, on_faulty_s3: FaultServer, what: str
) -> None:
    task.set(answer_timeout_s=2)
    may_end = threading.Event()
    hangs = {"upload": ".0.mfchckpt.1/weights", "commit": f"{TASK.task_folder}/0.mfchckpt.1.metadata"}[what]

    def inject(turn: Turn) -> bool:
        if turn.request.method == "PUT" and turn.request.key.endswith(hangs):
            may_end.wait(100)
        turn.serve()
        return True

    on_faulty_s3.inject = inject
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(4)]
    for reference in (references[0], *references[2:]):
        reference.wait(60)
    assert references[1].state != COMMITTED
    may_end.set()
    checkpointer.flush(60)


def test_newer_ones_are_committed_though_a_disk_never_answers_the_commit_of_one(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that has lost one answer hangs one thread for ever, and none that comes after it."""
    task.set(answer_timeout_s=1)
    may_end, hung = threading.Event(), threading.Event()
    publish = LocalStore._publish

    def hang_once(self: LocalStore, temporary: str, path: str, *rest: Any, **options: Any) -> None:
        if path.endswith("0.mfchckpt.1.metadata") and not hung.is_set():
            hung.set()
            may_end.wait(100)
        publish(self, temporary, path, *rest, **options)

    monkeypatch.setattr(LocalStore, "_publish", hang_once)
    checkpointer = task.start(uploader="thread")
    try:
        for number in range(4):
            save(checkpointer, task, number)
        checkpointer.flush(60)
        assert hung.is_set()
        assert task.committed_versions() == [0, 1, 2, 3]
    finally:
        may_end.set()


@pytest.mark.parametrize(
    "lacks",
    first_of(
        [
            RuntimeError("can't start new thread"), OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError(),
            OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ]
    ),
    ids=["threads", "descriptors", "memory", "memory of the kernel"],
)  # fmt: skip
def test_what_an_uploader_lacks_for_a_moment_is_waited_for(
    task: Task, monkeypatch: pytest.MonkeyPatch, lacks: Exception
) -> None:
    opened, tries = CapturedFile._open, itertools.count()

    def open_captured(self: CapturedFile, *options: Any) -> int:
        if next(tries) < 2:
            raise lacks
        return opened(self, *options)

    monkeypatch.setattr(CapturedFile, "_open", open_captured)
    lines: list[str] = []
    checkpointer = task.start(uploader="thread", report=lines.append)
    for number in range(3):
        save(checkpointer, task, number)
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1, 2]
    assert any("Uploads are held up, and tried again" in line for line in lines)

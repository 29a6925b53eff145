"""What an earlier checkpoint has is copied in the store, under whatever name it comes again; the bytes are right."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from async_ckpt.config import CHUNK_BYTES
from async_ckpt.layout import parse_key
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.tasks.task import Task, close_and_kill, content, kill, wait_until

BASE = CHUNK_BYTES + (1 << 20)
ADAPTER = 100 << 10


def save(checkpointer: Checkpointer, task: Task, number: int, name: str = "base") -> Reference:
    """As frameworks do: into a new directory."""
    folder = task.work / f"checkpoint-{number}"
    folder.mkdir()
    (folder / name).write_bytes(content(0, BASE))
    (folder / "adapter").write_bytes(content(number + 1, ADAPTER))
    return checkpointer.save(folder).wait(60)


def copied(checkpointer: Checkpointer) -> int:
    return int(checkpointer.status()["bytes_copied"])


def manifest_of(task: Task, reference: Reference) -> Path:
    return Path(task.store.root, parse_key(reference["key"]).manifest_key)


@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_a_frozen_base_goes_once_whatever_its_directory_and_its_name(task: Task, uploader: str) -> None:
    checkpointer = task.start(uploader=uploader)
    references = [save(checkpointer, task, number, f"base-{number}") for number in range(3)]
    assert copied(checkpointer) == 2 * BASE
    shutil.rmtree(task.stored(references[0], "."))
    for number in (1, 2):
        assert task.stored(references[number], f"base-{number}").read_bytes() == content(0, BASE)
        checkpointer.load(dict(references[number]), str(task.base / f"loaded-{number}"))
        assert (task.base / f"loaded-{number}" / "adapter").read_bytes() == content(number + 1, ADAPTER)


def test_the_next_uploader_knows_what_this_one_has_sent(task: Task) -> None:
    checkpointer = task.start()
    save(checkpointer, task, 0)
    kill(checkpointer.status()["uploader_pid"])
    save(checkpointer, task, 1)
    assert copied(checkpointer) == BASE


def test_an_attempt_on_another_machine_sends_only_what_is_new(task: Task) -> None:
    first = task.start()
    save(first, task, 0)
    close_and_kill(first)
    wait_until(lambda: not task.processes(), "the agent is gone")
    shutil.rmtree(task.root)
    checkpointer = task.start(attempt=1)
    assert checkpointer.loader.load_newest("fresh", str(task.base / "loaded"))
    save(checkpointer, task, 1)
    assert copied(checkpointer) == BASE


def test_what_was_loaded_from_elsewhere_is_known_as_well(task: Task) -> None:
    checkpointer = task.start()
    other = save(checkpointer, task, 0)
    kill(checkpointer.status()["uploader_pid"])  # It must not know it of itself,
    latest = [path for path in Path(task.store.root).rglob("latest") if path.is_file()]
    assert latest
    for path in latest:  # nor as the newest.
        path.unlink()
    checkpointer.load(dict(other), str(task.base / "loaded"))
    save(checkpointer, task, 1)
    assert copied(checkpointer) == BASE


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "async_ckpt.manifest/1"}', None])
def test_a_manifest_that_cannot_be_read_is_no_obstacle(task: Task, damage: str | None) -> None:
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    manifest = manifest_of(task, first)
    if damage is None:
        manifest.unlink()
    else:
        manifest.write_text(damage)
    kill(checkpointer.status()["uploader_pid"])
    second = save(checkpointer, task, 1)
    assert copied(checkpointer) == 0
    assert task.stored(second, "base").read_bytes() == task.stored(first, "base").read_bytes()


def test_digests_of_another_version_are_no_digests(task: Task) -> None:
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    manifest = manifest_of(task, first)
    data = json.loads(manifest.read_text())
    for entry in data["files"]:
        entry["digests"] = [f"blake9:{digest.partition(':')[2]}" for digest in entry["digests"]]
    manifest.write_text(json.dumps(data))
    kill(checkpointer.status()["uploader_pid"])
    save(checkpointer, task, 1)
    assert copied(checkpointer) == 0


def test_nothing_is_known_again_where_that_is_not_wanted(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_ASYNC_CKPT_CONTENT_DIGESTS", "off")
    checkpointer = task.start()
    references = [save(checkpointer, task, number) for number in range(2)]
    assert copied(checkpointer) == 0
    assert task.stored(references[1], "base").read_bytes() == content(0, BASE)
    assert "digests" not in manifest_of(task, references[0]).read_text()


def test_a_source_that_was_replaced_under_its_name_is_not_copied(task: Task) -> None:
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    stored = task.stored(first, "base")
    times = stored.stat()
    other = task.base / "other"  # Beside the first one, so that it cannot have its inode number.
    other.write_bytes(content(5, BASE))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.move(other, stored)
    second = save(checkpointer, task, 1)
    assert task.stored(second, "base").read_bytes() == content(0, BASE)

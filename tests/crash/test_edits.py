"""Files are edited in every way between saves, and what is loaded is what was saved. The long version: stress.edits."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from async_ckpt.config import CHUNK_BYTES
from harness.common.crc_twins import with_same_crc
from harness.files.edits import EDITS, EditedFiles, sums_of
from harness.kills.edited_saves import TROUBLES, EditedSaves, on_server
from harness.s3.ceph import ceph_server
from harness.s3.servers import S3Server, moto_server, rclone_server
from harness.tasks.task import Task
from tests.spread import first_of

__all__ = ["ceph_server", "moto_server", "rclone_server"]

#: Two chunks and a bit fit in.
MOST = 36 << 20


def test_other_content_with_the_same_crc() -> None:
    chance = random.Random(1)
    data = chance.randbytes(10_000)
    other = with_same_crc(data, chance)
    assert zlib.crc32(other) == zlib.crc32(data)
    assert sum(one != two for one, two in zip(data, other, strict=True)) > 9_000


@pytest.mark.long
def test_every_edit_changes_what_it_says(tmp_path: Path) -> None:
    files = EditedFiles(tmp_path / "files", random.Random(2), most=MOST)
    unchanged = []
    for name in EDITS:
        before = dict(files.expected)
        files.edit(name)
        assert sums_of(files.root) == files.expected
        if files.expected == before:
            unchanged.append(name)
    assert set(unchanged) <= {"same again", "swap names", "swap chunks", "hole"}


def check(life: EditedSaves, edits: int) -> None:
    found = life.run(edits)
    assert not found.wrong
    assert not found.reported
    assert found.compared >= found.saves


@pytest.mark.parametrize("kind", first_of(["disk", "xfs", "btrfs"]))
def test_a_local_store(on_filesystem: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    check(EditedSaves(on_filesystem(kind), monkeypatch, None, 3, most=MOST), 8)


@pytest.mark.parametrize("server", first_of(["moto_server", "rclone_server", "ceph_server"]))
def test_s3(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    place = on_server(request.getfixturevalue(server), "edits")
    check(EditedSaves(tmp_path, monkeypatch, place, 4, most=MOST), 5)


@pytest.mark.long
@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_each_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server, trouble: str) -> None:
    place = on_server(moto_server, trouble.replace(" ", "-"))
    check(EditedSaves(tmp_path, monkeypatch, place, 5, most=MOST, troubles={trouble: 1}), 12)


@pytest.mark.long
@pytest.mark.parametrize("server", ["moto_server", "rclone_server", "ceph_server"])
def test_what_somebody_replaced_is_not_copied(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """Objects of one request and of several parts, in a row: a copy of a copy as well."""
    store, objects = on_server(request.getfixturevalue(server), "replaced")
    task, chance = Task(tmp_path, monkeypatch), random.Random(7)
    task.store = store
    for name, size in (("big", 2 * CHUNK_BYTES + 5), ("small", 2 << 20)):
        (task.work / name).write_bytes(chance.randbytes(size))
    expected = sums_of(task.work)
    checkpointer = task.start()
    for _ in range(4):
        reference = checkpointer.save(task.work).wait(60)
        assert objects.sums(reference["key"]) == expected
        for key in objects.below(reference["key"]):
            objects.replace(key, chance)
    assert not task.close()


@pytest.mark.long
def test_another_machine_sends_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    store, objects = on_server(moto_server, "only-what-changed")
    chance, big, small = random.Random(6), 2 * CHUNK_BYTES + 70_001, 2 << 20
    before = {"big": chance.randbytes(big), "small": chance.randbytes(small)}
    first, second = (Task(tmp_path / name, monkeypatch) for name in ("first", "second"))
    for task in (first, second):
        task.store = store
    for name, data in before.items():
        (first.work / name).write_bytes(data)
    checkpointer = first.start()
    checkpointer.save(first.work).wait(60)
    assert not first.close()
    checkpointer = second.start(attempt=1)
    assert checkpointer.load_newest("fresh", str(second.work / "loaded")) is not None
    (second.work / "loaded" / "small").rename(second.work / "loaded" / "renamed")
    after = {"big": before["big"][:CHUNK_BYTES] + b"!" + before["big"][CHUNK_BYTES + 1 :], "renamed": before["small"]}
    (second.work / "loaded" / "big").write_bytes(after["big"])
    reference = checkpointer.save(second.work / "loaded").wait(60)
    assert checkpointer.status()["bytes_copied"] == big + small - CHUNK_BYTES
    assert objects.sums(reference["key"]) == {name: sha256(data).hexdigest() for name, data in after.items()}
    assert not second.close()

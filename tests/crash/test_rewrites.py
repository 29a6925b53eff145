"""No snapshot is torn by a trainer that writes over its files as soon as ``save()`` has returned."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.files.filesystems import FILESYSTEMS
from harness.files.rewriting import MODES, Rewriting
from harness.files.writers import WAYS
from harness.tasks.task import Task, content, wait_until
from tests.spread import spread

MIB = 1 << 20


@pytest.mark.parametrize(("kind", "mode", "writer"), spread(FILESYSTEMS, MODES, ["same process", "other process"]))
def test_every_checkpoint_is_what_was_there_at_its_save(
    task: Task, on_filesystem: Callable[[str], Path], kind: str, mode: str, writer: str
) -> None:
    task.move_to(on_filesystem(kind))
    checkpointer = task.start(uploader="thread" if mode == "thread" else "process")
    kills = iter(random.sample(WAYS, 2)) if mode == "killed" else iter(())
    size = 3 * MIB + 77
    with Rewriting(checkpointer, task.work, remote=writer == "other process", size=lambda: size) as rewriting:
        for _ in range(2):
            rewriting.round(kill_at=next(kills, ""))
        rewriting.finish()
    tallies = rewriting.tally.values()
    assert [tally.torn for tally in tallies if tally.torn] == []
    assert [tally.failed for tally in tallies if tally.failed] == []
    assert sum(tally.committed for tally in tallies) == 2 * len(WAYS)
    assert rewriting.kills == (2 if mode == "killed" else 0)


def test_a_writer_that_does_not_wait_is_told_so_and_gets_in_once_the_file_was_copied(
    task: Task, on_filesystem: Callable[[str], Path]
) -> None:
    task.move_to(on_filesystem("tmpfs"))
    gate = task.gate()
    gate.hold("weights")
    checkpointer, path = task.start(), task.work / "weights"
    path.write_bytes(content(0, MIB))
    saved = checkpointer.save(task.work)

    def rewritten() -> bool:
        with contextlib.suppress(BlockingIOError):
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
            os.write(fd, content(1, MIB))
            os.close(fd)
            return True
        return False

    assert not rewritten()
    assert path.read_bytes() == content(0, MIB)
    wait_until(rewritten, "the agent has copied it away")
    gate.open_all()
    checkpointer.flush(60)
    assert task.stored(saved, "weights").read_bytes() == content(0, MIB)


def test_the_proof_notices_a_torn_file(task: Task) -> None:
    """What was moved is the one thing a trainer can tear: it promised not to touch it."""
    checkpointer = task.start()
    with Rewriting(checkpointer, task.work, remote=False, size=lambda: MIB, ways=("truncate",)) as rewriting:
        rewriting.round()
        reference = rewriting._saved[0][1].wait(60)
        task.stored(reference, "weights").write_bytes(content(9, MIB))
        rewriting.finish()
    assert len(rewriting.tally["truncate"].torn) == 1


def test_a_directory_on_another_file_system_than_the_spool_is_not_torn_either(task: Task, filesystem: Path) -> None:
    """The snapshots lie in an annex above what is saved."""
    checkpointer = task.start()
    with Rewriting(checkpointer, filesystem, remote=False, size=lambda: MIB) as rewriting:
        rewriting.round()
        rewriting.round()
        rewriting.finish()
    for tally in rewriting.tally.values():
        assert (tally.torn, tally.failed, tally.committed) == ([], [], 2)
    task.close()
    assert sorted(path.name for path in filesystem.iterdir()) == sorted(WAYS)


def test_the_folder_around_what_was_saved_may_be_removed_right_away_on_another_file_system_too(
    task: Task, filesystem: Path
) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    (filesystem / "checkpoint-5").mkdir()
    (filesystem / "checkpoint-5" / "weights").write_bytes(content(0, MIB))
    reference = checkpointer.save(filesystem / "checkpoint-5" / "weights")
    shutil.rmtree(filesystem / "checkpoint-5")
    gate.open_all()
    reference.wait(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, MIB)


def test_one_inode_in_many_pending_snapshots_is_copied_once_for_all_of_them(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, 2 * MIB))
    references = [checkpointer.save(task.work) for _ in range(5)]
    wait_until(lambda: checkpointer.status()["leases"] == 5, "the agent has all leases")
    (task.work / "weights").write_bytes(content(1, 2 * MIB))
    inodes = {Path(item.file("weights")).stat().st_ino for item in checkpointer.spool.records.pending()}
    assert len(inodes) == 1
    assert (task.work / "weights").stat().st_ino not in inodes
    gate.open("weights")
    checkpointer.flush(60)
    for reference in references:
        assert task.stored(reference, "weights").read_bytes() == content(0, 2 * MIB)


def test_a_file_already_in_the_store_may_be_rewritten_while_the_rest_is_uploaded(task: Task) -> None:
    gate = task.gate()
    gate.hold("slow")
    checkpointer = task.start()
    (task.work / "slow").write_bytes(content(0, MIB))
    (task.work / "quick").write_bytes(content(1, MIB))
    reference = checkpointer.save(task.work)
    stored = task.stored(reference, "quick")
    wait_until(lambda: stored.exists() and checkpointer.status()["leases"] == 1, "the first file's lease was let go")
    (task.work / "quick").write_bytes(content(2, MIB))
    gate.open("slow")
    reference.wait(60)
    assert stored.read_bytes() == content(1, MIB)

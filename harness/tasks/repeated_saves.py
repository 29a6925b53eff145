"""A task that saves one directory over and over, and one that is killed right after."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.writers import content
from harness.flow_runs.environments import with_our_modules
from harness.tasks.task import Task

#: Large enough to be linked, not packed.
BIG = 300 << 10


def save(checkpointer: Checkpointer, task: Task, number: int, size: int = BIG) -> Reference:
    """Write the content of save ``number`` over the last one, and save it."""
    (task.work / "weights").write_bytes(content(number, size))
    return checkpointer.save(task.work, metadata={"number": number})


def assert_all_in_order(task: Task, references: Sequence[Mapping[str, Any]], size: int = BIG) -> None:
    """All are in the store, whole, committed one after the other, and ``latest`` is the last."""
    versions = [reference["version_id"] for reference in references]
    assert task.committed_versions() == sorted(versions)
    for reference in references:
        number = reference["metadata"]["number"]
        assert task.stored(reference, "weights").read_bytes() == content(number, size)
    times = [task.commit_time_ns(version) for version in versions]
    assert times == sorted(times)
    assert task.latest()["key"] == references[-1]["key"]


def assert_prefix(task: Task) -> None:
    """Whoever looks at the store now sees the oldest checkpoints without a gap."""
    versions = task.committed_versions()
    assert versions == list(range(len(versions)))


_SAVE_AND_DIE = """
import os, signal, sys
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.layout import TaskInfo
from async_ckpt.stores.base import StoreSpec
root, store, work, count, victims = sys.argv[1:]
from harness.tasks.task import TASK, agent_pid
from harness.files.writers import content
checkpointer = Checkpointer.start(root, TASK, StoreSpec("local", store), Config.from_env(), uploader="process")
for number in range(int(count)):
    # Not in place: a file that was rewritten in place once is copied away early from then on.
    with open(work + "/new", "wb") as file:
        file.write(content(number, 300 << 10))
    os.rename(work + "/new", work + "/weights")
    checkpointer.save(work, metadata={"number": number})
if victims == "both":
    os.kill(agent_pid(checkpointer), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def save_and_die(task: Task, count: int, victims: str) -> None:
    """A task's process that saves and is killed in the next instruction."""
    done = subprocess.run(
        [sys.executable, "-c", _SAVE_AND_DIE, task.root, task.store.root, str(task.work), str(count), victims],
        env=with_our_modules(), check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL

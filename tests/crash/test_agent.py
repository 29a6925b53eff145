"""Agent, uploader and task are killed at the worst moments: every admitted checkpoint is committed, in order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from async_ckpt import layout
from async_ckpt.manifest import FileEntry, Manifest
from async_ckpt.spool import journal
from async_ckpt.spool.journal import COMMITTED
from async_ckpt.spool.spool import Spool
from harness.tasks.repeated_saves import BIG, assert_all_in_order, assert_prefix, save, save_and_die
from harness.tasks.task import TASK, Task, agent_pid, content, is_alive, journal_lines, kill, uploader_pid, wait_until
from tests.spread import first_of

from . import test_collective, test_same_attempt, test_state

SAVES = 50
#: Process numbers are smaller than this.
NEVER_A_PID = 1 << 22

CRASH_POINTS = (
    "agent:before-uploaded",
    "agent:before-committed",
    "uploader:before-file",
    "uploader:before-manifest",
    "uploader:before-commit",
    "uploader:in-batch",
    "uploader:before-latest",
)


@pytest.mark.parametrize("victims", first_of(["both", "agent", "uploader"]))
def test_fifty_saves_survive_kills_at_random_moments(task: Task, victims: str) -> None:
    random_ = random.Random(victims)
    checkpointer = task.start()
    # More deaths with the same one in hand, and it is tried after the others.
    moments = sorted(random_.sample(range(SAVES), 4))
    references = []
    for number in range(SAVES):
        references.append(save(checkpointer, task, number))
        assert_prefix(task)
        if number in moments:
            if victims in ("uploader", "both") and kill(uploader_pid(checkpointer)):
                pass
            if victims in ("agent", "both"):
                kill(agent_pid(checkpointer))
    checkpointer.flush(120)
    assert_all_in_order(task, references)
    states = journal.read(checkpointer.spool.path("journal"))
    assert [states[f"0.mfchckpt.{number}"].state for number in range(SAVES)] == [COMMITTED] * SAVES


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_saves_survive_a_kill_at(task: Task, point: str) -> None:
    marker = task.crash_at(point)
    gate = task.gate()
    gate.hold("first")
    checkpointer = task.start()
    (task.work / "first").write_bytes(content(0, BIG))
    references = [save(checkpointer, task, 0)]
    (task.work / "first").unlink()
    references += [save(checkpointer, task, number) for number in range(1, 10)]
    if point == "uploader:in-batch":  # There is a batch once others have overtaken the first.
        wait_until(lambda: checkpointer.state("0.mfchckpt.9")[0] == "UPLOADED", "all but the first are uploaded")
    gate.open("first")
    checkpointer.flush(120)
    assert marker.exists(), "nothing came by that point"
    assert_all_in_order(task, references)


def test_every_named_crash_point_is_tried_here() -> None:
    package = Path(journal.__file__).parent.parent
    named = {
        line.split('crash_point("')[1].split('"')[0]
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if 'crash_point("' in line
    }
    others = (test_collective, test_same_attempt, test_state)
    assert named == {*CRASH_POINTS, *(point for module in others for point in module.CRASH_POINTS)}


def test_a_journal_in_order_of_commits_is_written_while_uploads_overtake_each_other(task: Task) -> None:
    gate = task.gate()
    gate.hold("first")
    checkpointer = task.start()
    (task.work / "first").write_bytes(content(0, BIG))
    references = [checkpointer.save(task.work)]
    (task.work / "first").unlink()
    references += [save(checkpointer, task, number) for number in range(1, 4)]
    wait_until(lambda: checkpointer.state("0.mfchckpt.1")[0] == "UPLOADED", "the second overtook the first")
    assert task.committed_versions() == []
    gate.open("first")
    checkpointer.flush(60)
    committed = [line["id"] for line in journal_lines(checkpointer) if line.get("state") == COMMITTED]
    assert committed == [f"0.mfchckpt.{version}" for version in range(4)]


def test_the_agent_drains_after_its_task_was_killed_and_removes_the_spool(task: Task) -> None:
    save_and_die(task, 5, "task")
    wait_until(lambda: not task.spool_exists(), "the agent has drained and removed the spool")
    assert task.committed_versions() == list(range(5))
    wait_until(lambda: not task.processes(), "the agent is gone")
    assert set(os.listdir(task.root)) <= {"habits", "pace"}, "what was learned of this disk stays, and nothing else"


def test_the_next_attempt_uploads_what_task_and_agent_left_when_both_were_killed(task: Task) -> None:
    save_and_die(task, 5, "both")
    assert len(task.committed_versions()) < 5
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert task.committed() == [(0, version) for version in range(5)]
    found = checkpointer.load_newest("fresh", str(task.base / "loaded"))
    assert found is not None
    assert found["metadata"] == {"number": 4}
    assert (task.base / "loaded/weights").read_bytes() == content(4, BIG)


def test_the_next_attempt_loads_the_last_save_before_it_has_reached_the_store(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 3, "both")
    checkpointer = task.start(attempt=1)
    found = checkpointer.load_newest("fresh", str(task.base / "loaded"))
    assert found is not None
    assert found["metadata"] == {"number": 2}
    assert (task.base / "loaded/weights").read_bytes() == content(2, BIG)
    assert task.committed() == []
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed() == [(0, 0), (0, 1), (0, 2)]


def test_a_retry_adopts_the_agent_that_still_drains(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 2, "task")
    (agent,) = [int(Path(task.spool.path("agent.pid")).read_text())]
    assert is_alive(agent)
    checkpointer = task.start(attempt=1)
    assert checkpointer.status()["pid"] == agent
    reference = save(checkpointer, task, 7)
    assert reference["version_id"] == 0
    assert reference["attempt"] == 1
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed() == [(0, 0), (0, 1), (1, 0)]
    assert is_alive(agent)


def test_what_an_earlier_version_had_moved_into_a_spool_is_uploaded(task: Task) -> None:
    spool = Spool.create(task.root, TASK, task.store)
    data = spool.path("data", f"{NEVER_A_PID}-0123456789abcdef")
    os.mkdir(data)
    Path(data, "model").write_bytes(b"all I have")
    os.symlink(f"{task.work}/", f"{data}.origin")
    moved = FileEntry("model", 10, 0o644, "moved", mtime_ns=os.stat(Path(data, "model")).st_mtime_ns)
    reference = layout.reference(
        TASK, name="mfchckpt", version=0, url=task.store.root, size=10, metadata={}, storage_format="files", latest=True
    )
    spool.records.admit(reference, Manifest([moved]), data, str(task.work))
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert task.stored(reference, "model").read_bytes() == b"all I have"
    wait_until(lambda: os.listdir(spool.path("data")) == [], "nothing of it is left")

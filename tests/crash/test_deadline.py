"""The machine will be taken away: the newest checkpoint that can make it goes first, and the rest if there is time."""

from __future__ import annotations

import datetime
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.spool.journal import COMMITTED, UPLOADED
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import Gate, Task, agent_pid, content, journal_lines, kill, wait_until

SAVES = 6


@pytest.fixture
def gate(task: Task) -> Gate:
    """Holds all uploads."""
    gate = task.gate()
    gate.hold("weights")
    return gate


def save_all(checkpointer: Checkpointer, task: Task, side_by_side: int = 2) -> list[Any]:
    references = []
    for number in range(SAVES):
        (task.work / "new").write_bytes(content(number, BIG))
        os.replace(task.work / "new", task.work / "weights")
        references.append(checkpointer.save(task.work, metadata={"number": number}))
    wait_until(lambda: {r.state for r in references[:side_by_side]} == {"UPLOADING"}, "the oldest are on their way")
    return references


def in_order(checkpointer: Checkpointer, state: str) -> list[int]:
    """The versions in the order in which they came to that state."""
    ids = [line["id"] for line in journal_lines(checkpointer) if line.get("state") == state]
    return [int(identity.rpartition(".")[2]) for identity in ids]


def assert_all_there(task: Task, references: list[Any]) -> None:
    assert task.committed_versions() == list(range(len(references)))
    assert task.latest()["key"] == references[-1]["key"]
    for reference in references:
        number = reference["metadata"]["number"]
        assert task.stored(reference, "weights").read_bytes() == content(number, BIG)


@pytest.mark.parametrize("how", ["SIGTERM", "notice", "task"])
def test_the_newest_goes_first_and_the_rest_follows_while_there_is_time(task: Task, gate: Gate, how: str) -> None:
    notice = task.base / "notice"
    task.set(spot_notice_file=notice, termination_grace_s=50, max_uploads=1)  # Small ones would go beside.
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    references = save_all(checkpointer, task, side_by_side=1)
    if how == "SIGTERM":
        kill(agent_pid(checkpointer), signal.SIGTERM)
    elif how == "notice":
        when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=50)
        notice.write_text(when.strftime("%Y-%m-%dT%H:%M:%SZ"))
    else:
        left: list[list[str]] = []
        hurrying = threading.Thread(target=lambda: left.append(checkpointer.hurry(50)))
        hurrying.start()
    wait_until(lambda: references[-1].state == "UPLOADING", "the newest is on its way")
    wait_until(lambda: said, "people hear of it")
    assert said[0].endswith("0.mfchckpt.5 goes first; given up, unless there is time left over: " + ", ".join(
        f"0.mfchckpt.{number}" for number in (4, 3, 2, 1, 0)
    ))  # fmt: skip
    gate.open("weights")
    checkpointer.flush(60)
    assert in_order(checkpointer, UPLOADED) == [5, 4, 3, 2, 1, 0]
    assert_all_there(task, references)
    if how == "task":
        hurrying.join(60)
        assert left == [[]]


def test_people_hear_it_also_from_an_agent_that_was_started_again_meanwhile(task: Task, gate: Gate) -> None:
    notice = task.base / "notice"
    task.set(spot_notice_file=notice, max_uploads=1)
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    save_all(checkpointer, task, side_by_side=1)
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=300)
    notice.write_text(when.strftime("%Y-%m-%dT%H:%M:%SZ"))
    for count in (1, 2, 3):
        told = f"{count} agents have said it"
        wait_until(lambda count=count: sum("the notice of the machine's end: " in line for line in said) == count, told)
        kill(agent_pid(checkpointer))
        checkpointer.status()  # Starts another one.
    gate.open("weights")
    checkpointer.flush(60)


def test_the_task_hears_what_did_not_make_it(task: Task, gate: Gate) -> None:
    checkpointer = task.start()
    save_all(checkpointer, task)
    assert checkpointer.hurry(0.3) == [f"0.mfchckpt.{number}" for number in reversed(range(SAVES))]
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == list(range(SAVES))


def test_what_is_saved_in_the_last_seconds_goes_before_all_others(task: Task, gate: Gate) -> None:
    task.set(termination_grace_s=50, max_uploads=1)
    checkpointer = task.start()
    references = save_all(checkpointer, task, side_by_side=1)
    kill(agent_pid(checkpointer), signal.SIGTERM)
    wait_until(lambda: references[-1].state == "UPLOADING", "the newest is on its way")
    references.append(save(checkpointer, task, SAVES))
    wait_until(lambda: references[-1].state == "UPLOADING", "a newer one is on its way")
    assert references[-2].state == "ADMITTED"
    gate.open("weights")
    checkpointer.flush(60)
    assert in_order(checkpointer, UPLOADED)[:2] == [6, 5]
    assert_all_there(task, references)


def test_a_machine_that_was_not_taken_goes_on_in_order(task: Task, gate: Gate) -> None:
    task.set(termination_grace_s=0.3)
    checkpointer = task.start()
    references = save_all(checkpointer, task)
    kill(agent_pid(checkpointer), signal.SIGTERM)
    wait_until(lambda: references[-1].state == "UPLOADING", "the newest is on its way")
    wait_until(lambda: references[0].state == "UPLOADING", "time is over, and the oldest go on")
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_there(task, references)


def test_what_was_given_up_is_brought_in_by_the_next_attempt_on_this_machine(task: Task, gate: Gate) -> None:
    task.set(termination_grace_s=50)
    checkpointer = task.start()
    references = save_all(checkpointer, task)
    kill(agent_pid(checkpointer), signal.SIGTERM)
    wait_until(lambda: references[-1].state == "UPLOADING", "the newest is on its way")
    kill(agent_pid(checkpointer))
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_there(task, references)


def test_a_notice_of_another_day_changes_nothing(task: Task) -> None:
    notice = task.base / "notice"
    notice.write_text("2020-01-01T00:00:00Z")
    task.set(spot_notice_file=notice)
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    references = [save(checkpointer, task, number) for number in range(5)]
    checkpointer.flush(60)
    assert in_order(checkpointer, COMMITTED) == [0, 1, 2, 3, 4]
    assert_all_there(task, references)
    assert said == []


def test_half_an_upload_that_was_paused_goes_on_where_it_was(task: Task, gate: Gate) -> None:
    """Of two files one is in the store already: it is not sent again."""
    task.set(termination_grace_s=0.3, max_uploads=1)
    checkpointer = task.start()
    big = 2 << 20
    (task.work / "other").write_bytes(content(7, big))
    first = save(checkpointer, task, 0)
    stored = Path(task.store.root, first["key"], "other")
    wait_until(stored.exists, "the other file is in the store")
    wait_until(lambda: [r for r in journal_lines(checkpointer) if r.get("file") == "other"], "and the agent knows it")
    inode = stored.stat().st_ino
    (task.work / "other").unlink()
    second = save(checkpointer, task, 1)
    kill(agent_pid(checkpointer), signal.SIGTERM)
    wait_until(lambda: second.state == "UPLOADING", "the newest is on its way")
    gate.open("weights")
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]
    assert stored.stat().st_ino == inode

"""The same attempt begins more than once: on two machines, which are two spools here, and on one."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence

import pytest

from async_ckpt import layout
from async_ckpt.errors import StoreError
from async_ckpt.layout import START_STEP
from async_ckpt.spool.journal import COMMITTED, CheckpointState
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.spool import Spool
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.writers import content
from harness.tasks.task import TASK, Gate, Task, agent_pid, kill, wait_until

SIZE = 200 << 10

CRASH_POINTS = ["claims:before-claim", "claims:after-claim"]


class Machine:
    """A disk of its own: spool, trainer's directory."""

    def __init__(self, task: Task, name: str) -> None:
        self.task, self.name = task, name
        self.folder = task.base / name
        self.folder.mkdir()
        self.said: list[str] = []
        self._loads = 0

    def start(self, attempt: int = 0, uploader: str = "process") -> Checkpointer:
        self.task.move_to(self.folder)
        return self.task.start(attempt=attempt, report=self.said.append, uploader=uploader)

    def save(self, checkpointer: Checkpointer, number: int) -> Reference:
        # Not in place: nobody guards what a dead machine has left.
        (self.folder / "new").write_bytes(content(number, SIZE))
        os.rename(self.folder / "new", self.folder / "work/weights")
        return checkpointer.save(self.folder / "work", metadata={"number": number})

    def load(self, checkpointer: Checkpointer) -> int | None:
        """What ``fresh`` resumes from: the number of the save."""
        self._loads += 1
        into = self.folder / f"loaded-{self._loads}"
        found = checkpointer.load_newest("fresh", str(into))
        if found is None:
            return None
        number: int = found["metadata"]["number"]
        assert (into / "weights").read_bytes() == content(number, SIZE)
        return number

    def die(self, checkpointer: Checkpointer) -> None:
        """The machine is gone: task, agent and uploader, whatever waits."""
        pid = agent_pid(checkpointer)
        kill(pid, signal.SIGSTOP)
        checkpointer.close(clean=False)
        kill(pid)


@pytest.fixture
def machines(task: Task) -> tuple[Machine, Machine, Machine]:
    return Machine(task, "a"), Machine(task, "b"), Machine(task, "c")


def assert_all_loadable(task: Task, references: Sequence[Reference]) -> None:
    assert task.committed() == sorted((r["attempt"], r["version_id"]) for r in references)
    for number, reference in enumerate(references):
        into = task.base / f"check-{number}"
        task.read(reference, into)
        assert (into / "weights").read_bytes() == content(reference["metadata"]["number"], SIZE)


def numbers(references: Sequence[Reference]) -> list[int]:
    return [reference["version_id"] for reference in references]


def test_a_second_machine_goes_on_where_the_first_one_ended(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, c = machines
    first = a.start()
    assert a.load(first) is None
    saved = [a.save(first, number) for number in range(3)]
    first.flush(60)
    first.close(clean=False)
    second = b.start()
    assert b.load(second) == 2
    saved += [b.save(second, number) for number in range(3, 6)]
    second.flush(60)
    second.close(clean=False)
    assert numbers(saved) == [0, 1, 2, START_STEP, START_STEP + 1, START_STEP + 2]
    third = c.start()
    assert c.load(third) == 5
    saved.append(c.save(third, 6))
    third.flush(60)
    third.close(clean=False)
    retry = a.start(attempt=1)
    assert a.load(retry) == 6
    assert_all_loadable(task, saved)
    assert any("was begun before, on " in line for line in b.said)
    assert not a.said


@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_two_machines_at_once_keep_their_own(
    task: Task, machines: tuple[Machine, Machine, Machine], uploader: str
) -> None:
    a, b, _ = machines
    tasks = [(a, a.start(uploader=uploader)), (b, b.start(uploader=uploader))]
    saved: list[Reference] = []

    def train(machine: Machine, checkpointer: Checkpointer, first: int) -> None:
        saved.extend(machine.save(checkpointer, number) for number in range(first, first + 4))
        checkpointer.flush(60)

    threads = [threading.Thread(target=train, args=(*pair, 100 * index)) for index, pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(saved) == 8
    assert_all_loadable(task, saved)
    newest = max(saved, key=lambda reference: reference["version_id"])
    for _, checkpointer in tasks:
        checkpointer.close(clean=False)
    third = Machine(task, "d")
    assert third.load(third.start()) == newest["metadata"]["number"]


def die_with_one_stored_and_one_not(task: Task, machine: Machine) -> tuple[Gate, list[Reference]]:
    """The gate that holds the second one back, and both."""
    gate = task.gate()
    checkpointer = machine.start()
    saved = [machine.save(checkpointer, 0)]
    checkpointer.flush(60)
    gate.hold("weights")
    saved.append(machine.save(checkpointer, 1))
    machine.die(checkpointer)
    return gate, saved


def test_what_a_dead_machine_had_not_stored_stays_under_its_own_keys_when_it_comes_back(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, _ = machines
    gate, saved = die_with_one_stored_and_one_not(task, a)
    gate.open("weights")
    second = b.start()
    assert b.load(second) == 0, "all that anybody but the dead machine can know of"
    saved.append(b.save(second, 2))
    second.flush(60)
    second.close(clean=False)
    third = a.start()
    assert a.load(third) == 2, "the newest, not what lies on this disk"
    saved.append(a.save(third, 3))
    third.flush(60)
    assert numbers(saved) == [0, 1, START_STEP, 2 * START_STEP]
    assert_all_loadable(task, saved)


def test_the_same_machine_goes_on_with_its_number_and_its_spool(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, _, _ = machines
    gate, saved = die_with_one_stored_and_one_not(task, a)
    again = a.start()
    assert a.load(again) == 1, "what is on its way still"
    saved.append(a.save(again, 2))
    gate.open("weights")
    again.flush(60)
    assert numbers(saved) == [0, 1, 2]
    assert_all_loadable(task, saved)
    assert not [line for line in a.said if "begun before" in line]


def test_an_agent_that_is_started_again_keeps_the_number(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, _ = machines
    first, second = a.start(), b.start()
    saved = [a.save(first, 0), b.save(second, 1)]
    for checkpointer in (first, second):
        kill(agent_pid(checkpointer))
    saved += [a.save(first, 2), b.save(second, 3)]
    for checkpointer in (first, second):
        checkpointer.flush(60)
    assert sorted(version % START_STEP for version in numbers(saved)) == [0, 0, 1, 1]
    assert_all_loadable(task, saved)


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_an_uploader_that_dies_over_its_claim_does_not_count_twice(
    task: Task, machines: tuple[Machine, Machine, Machine], point: str
) -> None:
    a, b, _ = machines
    marker = task.crash_at(point)
    first = a.start()
    saved = [a.save(first, 0)]
    assert marker.exists()
    first.flush(60)
    assert numbers(saved) == [0]
    second = b.start()
    saved.append(b.save(second, 1))
    second.flush(60)
    assert numbers(saved) == [0, START_STEP]
    assert_all_loadable(task, saved)


def test_a_start_that_saved_nothing_counts(task: Task, machines: tuple[Machine, Machine, Machine]) -> None:
    a, b, _ = machines
    first = a.start()
    first.tracker.wait_for_start()
    a.die(first)
    second = b.start()
    assert b.load(second) is None
    assert b.save(second, 0)["version_id"] == START_STEP
    second.flush(60)


def test_a_store_that_does_not_answer_holds_nobody_up_and_nothing_is_written_over(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, c = machines
    first = a.start()
    saved = [a.save(first, 0)]
    first.flush(60)
    first.close(clean=False)
    task.set(claim_wait_s=0.2)
    gate = task.gate()
    gate.hold("start-")
    second = b.start()
    assert b.load(second) is None
    saved.append(b.save(second, 1))
    assert numbers(saved)[1] >= TASK.most_starts // 2 * START_STEP
    assert [line for line in b.said if "Nobody has said within 0.2 s" in line]
    gate.open("start-")
    wait_until(lambda: [line for line in b.said if "was not looked for" in line], "the task hears what there was")
    saved.append(b.save(second, 2))
    second.flush(60)
    second.close(clean=False)
    task.set(claim_wait_s=60)
    third = c.start()
    assert c.load(third) == 2
    saved.append(c.save(third, 3))
    third.flush(60)
    assert numbers(saved) == sorted(numbers(saved))
    assert_all_loadable(task, saved)


def test_the_key_of_the_next_save_is_known_before_it(task: Task, machines: tuple[Machine, Machine, Machine]) -> None:
    a, b, _ = machines
    a.start().tracker.wait_for_start()
    second = b.start()
    key = second.next_key("mfchckpt")
    assert b.save(second, 0)["key"] == key
    assert layout.parse_key(key).version == START_STEP
    second.flush(60)


def test_what_is_known_of_the_start_is_asked_again_where_something_removes_it(
    task: Task, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, _ = machines
    a.start().tracker.wait_for_start()
    second = b.start()
    assert second.tracker.wait_for_start().number == 1
    os.unlink(second.spool.start_path(0))
    other = Checkpointer(Spool.open(second.spool.directory), second.config)
    task.take(other)
    assert other.tracker.wait_for_start().number == 1


@pytest.mark.parametrize("newer", [True, False])
def test_one_on_the_disk_is_loaded_from_a_silent_store_only_if_nothing_newer_is_known_to_be_in_it(
    task: Task, machines: tuple[Machine, Machine, Machine], monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    a, _, _ = machines
    gate = task.gate()
    gate.hold("weights")
    first = a.start()
    a.save(first, 0)
    first.close(clean=False)
    second = a.start(attempt=1)

    def fails(*_: object) -> None:
        raise StoreError("out of reach")

    committed = CheckpointState(
        state=COMMITTED, commit=json.dumps({"attempt": 0, "version_id": int(newer) * 9 - 1}).encode()
    )
    monkeypatch.setattr(second.tracker, "look", lambda: {"0.mfchckpt.9": committed})
    monkeypatch.setattr(second.loader, "_why_silent", lambda: "out of reach")
    monkeypatch.setattr(second.tracker, "run", fails)
    if newer:
        with pytest.raises(StoreError):
            next(second.loader.candidates("fresh"))
    else:
        assert isinstance(next(second.loader.candidates("fresh")), Admitted)
    monkeypatch.undo()
    gate.open("weights")
    second.flush(60)

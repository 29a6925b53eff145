"""One message, or a few, that an agent must take as they are: it answers, or ends the connection, and works on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.agent.questions import MAX_QUESTIONS
from async_ckpt.ipc import protocol
from async_ckpt.spool.records import Admitted, Records
from async_ckpt.task.checkpointer import Checkpointer
from harness.hostile.client import descriptors_of
from harness.hostile.frames import frame
from harness.tasks.protocol_client import Talker
from harness.tasks.repeated_saves import save
from harness.tasks.task import Task, agent_pid, is_alive, journal_lines, uploader_pid, wait_until

HELLO = protocol.encode({"op": "hello", "v": protocol.VERSION, "seq": 1})
LAST = protocol.encode({"op": "state", "id": "", "seq": 987_654_321})

#: More digits than a float has room for.
MANY = "9" * 400


def plain(**fields: object) -> bytes:
    return frame(json.dumps(fields, ensure_ascii=False).encode())


def nested(field: str, depth: int) -> bytes:
    return frame(f'{{"op":"status","id":"","{field}":{"[" * depth}{"]" * depth}}}'.encode())


MESSAGES = {
    "a time of 400 digits": frame(f'{{"op":"deadline","seconds":{MANY}}}'.encode()),
    "a limit of 400 digits": frame(f'{{"op":"flush","timeout_s":{MANY}}}'.encode()),
    "a seq whose answer is too long": plain(op="status", seq="é" * 400_000),
    "a seq too deep to be said again": b"".join(nested("seq", depth) for depth in range(900, 1000, 2)),
    "an operation too long to be said again": plain(op="\x01" * 170_000),
    "an id too deep to be shown": b"".join(nested("id", depth) for depth in range(900, 1000, 2)),
    "a folder that is none": plain(op="room", folder="a\0b", timeout_s=0),
    "a folder that is no text": frame(b'{"op":"room","folder":"\\ud800","timeout_s":0}'),
    "ids too long for a file": b"".join(plain(op="state", id=letter * 500_000) for letter in "abc"),
    "an id that is no name": plain(op="state", id="a\0b"),
    "an id that is no text": frame(b'{"op":"state","id":"\\ud800"}'),
    "long ids that are no names": b"".join(
        plain(op="state", id=f"\0{letter}" + 60_000 * "x") for letter in "abcdefghijkl"
    ),
}


def say(checkpointer: Checkpointer, data: bytes, fds: list[int] | None = None) -> None:
    """Say something after a greeting, and wait until it was understood or the agent has ended the connection."""
    with protocol.connect(checkpointer.spool.path("agent.sock"), 60) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(HELLO)
        sent = protocol.send(sock, data, fds or [])
        sock.sendall(data[sent:] + LAST)
        answers = b""
        while b'"seq":987654321' not in answers and (received := sock.recv(1 << 16)):
            answers = answers[-100:] + received


def test_an_agent_survives_all_that_makes_no_sense_and_keeps_nothing_of_it(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    reference = save(checkpointer, task, 0)
    agent = agent_pid(checkpointer)
    for name, message in MESSAGES.items():
        say(checkpointer, message)
        status = checkpointer.status()
        assert is_alive(agent), name
        assert status["pid"] == agent, name
        assert (status["pending"], status["failed_count"]) == (1, 0), name
    gate.open("weights")
    checkpointer.flush(60)
    assert reference.done()
    assert {line["id"] for line in journal_lines(checkpointer)} == {"0.mfchckpt.0"}


KINDS: dict[str, Callable[[], int]] = {
    "a path": lambda: os.open("/", os.O_PATH),
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "a file": lambda: os.open(__file__, os.O_RDONLY),
    "an event": lambda: os.eventfd(0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_descriptor_that_is_no_lease_does_not_take_the_place_of_one(task: Task, kind: str) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    agent, before = agent_pid(checkpointer), checkpointer.status()["leases"]
    fd = KINDS[kind]()
    try:
        say(checkpointer, plain(op="admit", id="0.mfchckpt.0", guard=["weights"], fds=1), [fd])
    finally:
        os.close(fd)
    assert is_alive(agent)
    assert checkpointer.status()["leases"] == before == 1
    gate.open("weights")
    checkpointer.flush(60)


def test_another_name_of_a_checkpoint_is_not_another_checkpoint(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    wait_until(lambda: Path(checkpointer.spool.path("ready", "0.mfchckpt.0.json")).exists(), "it is admitted")
    for name in ("./0.mfchckpt.0", "../ready/0.mfchckpt.0", checkpointer.spool.path("ready", "0.mfchckpt.0")):
        say(checkpointer, plain(op="state", id=name))
    assert checkpointer.status()["pending"] == 1
    gate.open("weights")
    checkpointer.flush(60)


def test_descriptors_of_a_good_frame_before_a_bad_one_are_closed(task: Task) -> None:
    checkpointer = task.start()
    agent = agent_pid(checkpointer)
    uploader_pid(checkpointer)  # The agent has a socket for it as well.
    before, fd = descriptors_of(agent), os.open("/", os.O_RDONLY)
    taken = plain(op="admit", id="?", guard=["a"] * 50, fds=50)
    for bad in (frame(b"!"), frame(b"[]"), b"\xff\xff\xff\xff", plain(op="admit", fds=9)):
        say(checkpointer, taken + bad, [fd] * 50)
    os.close(fd)
    wait_until(lambda: descriptors_of(agent) <= before, "the agent has closed what it was sent", 10)


def test_questions_of_a_connection_that_was_ended_are_forgotten(task: Task) -> None:
    checkpointer = task.start()
    # The second greeting ends the connection; what stands behind it is read already.
    refused = protocol.encode({"op": "hello", "v": 0})
    questions = protocol.encode({"op": "wait", "id": "?", "timeout_s": float("inf")}) * 500
    for _ in range(40):
        say(checkpointer, refused + questions)
    # Each of them would be looked at again, five times a second, for ever.
    assert checkpointer.status()["pid"] == agent_pid(checkpointer)


def test_questions_beyond_the_most_that_may_wait_are_refused_and_the_others_answered(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    with contextlib.closing(Talker(checkpointer.spool.directory)) as client:
        numbers = range(1000, 1000 + MAX_QUESTIONS + 1)
        for number in numbers:
            client.send({"op": "wait", "id": "0.mfchckpt.0", "timeout_s": 600, "seq": number})
        assert str(MAX_QUESTIONS) in client.answer(numbers[-1])["error"]
        assert client.ask({"op": "status"})["pending"] == 1
        gate.open("weights")
        answers = client.answers(*numbers[:-1])
        assert {answer["state"] for answer in answers} == {"COMMITTED"}
        assert client.ask({"op": "wait", "id": "0.mfchckpt.0"})["state"] == "COMMITTED"


def test_an_id_that_is_waited_for_in_vain_is_looked_for_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = task.start(uploader="thread")
    looked, read = [], Records.read

    def look(self: Records, identity: str) -> Admitted | None:
        looked.append(identity)
        return read(self, identity)

    monkeypatch.setattr(Records, "read", look)
    with contextlib.closing(Talker(checkpointer.spool.directory)) as client:
        # Longer than the agent's loop goes round once.
        assert client.ask({"op": "wait", "id": "0.mfchckpt.9", "timeout_s": 1})["state"] is None
    assert looked == ["0.mfchckpt.9"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gets a process back from idle priority")
def test_the_uploader_has_its_share_of_the_machine_for_as_long_as_somebody_waits_for_it(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    save(checkpointer, task, 0)
    uploader = uploader_pid(checkpointer)
    wait_until(lambda: os.sched_getscheduler(uploader) == os.SCHED_IDLE, "it is idle while the task trains")
    with contextlib.closing(Talker(checkpointer.spool.directory)) as client:
        client.send({"op": "flush", "timeout_s": 600, "seq": 50})
        wait_until(lambda: os.sched_getscheduler(uploader) == os.SCHED_OTHER, "somebody waits")
        assert client.ask({"op": "flush", "timeout_s": 0})["pending"] == 1
        assert client.ask({"op": "status"})["pending"] == 1
        assert os.sched_getscheduler(uploader) == os.SCHED_OTHER
    wait_until(lambda: os.sched_getscheduler(uploader) == os.SCHED_IDLE, "nobody waits any more")
    with contextlib.closing(Talker(checkpointer.spool.directory)) as client:
        assert client.ask({"op": "flush", "timeout_s": 0.5})["pending"] == 1
        wait_until(lambda: os.sched_getscheduler(uploader) == os.SCHED_IDLE, "its time is over")
    gate.open("weights")
    checkpointer.flush(60)

"""Saves that a client asks for over the socket: each is a checkpoint like any other, or an error that says why."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.agent import socket_saves
from async_ckpt.ipc import protocol
from async_ckpt.task import socket_saver
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.protocol_client import Talker
from harness.tasks.repeated_saves import BIG
from harness.tasks.repeated_saves import save as save_in_task
from harness.tasks.task import Task, agent_pid, command_line, content, is_alive, kill, wait_until


@pytest.fixture
def talk() -> Iterator[Callable[[Checkpointer], Talker]]:
    with contextlib.ExitStack() as stack:

        def connect(checkpointer: Checkpointer) -> Talker:
            talker = Talker(checkpointer.spool.directory)
            stack.callback(talker.close)
            return talker

        yield connect


def write(task: Task, number: int, folder: str = "theirs") -> Path:
    """A directory with the content of save ``number``, written in place."""
    path = task.base / folder
    path.mkdir(exist_ok=True)
    (path / "weights").write_bytes(content(number, BIG))
    return path


def savers(task: Task) -> list[int]:
    return [pid for pid in task.processes() if "async_ckpt.task.socket_saver" in command_line(pid)]


def saver_pid(task: Task) -> int:
    """The process that saves for clients."""
    (found,) = savers(task)
    return found


@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_saves_over_the_socket_are_checkpoints_in_order_with_the_tasks_own(
    task: Task, talk: Callable[[Checkpointer], Talker], uploader: str
) -> None:
    checkpointer = task.start(uploader=uploader)
    client = talk(checkpointer)
    saved = []
    for number in range(3):
        answer = client.save(write(task, number), name="theirs", metadata={"number": number, "ü": ["€", None]})
        assert answer["id"] == f"0.theirs.{2 * number}"
        assert answer["reference"]["metadata"] == {"number": number, "ü": ["€", None]}
        saved.append(answer["reference"])
        saved.append(dict(save_in_task(checkpointer, task, 100 + number)))
    assert client.ask({"op": "wait", "id": "0.theirs.4", "timeout_s": 60})["state"] == "COMMITTED"
    checkpointer.flush(60)
    assert task.committed_versions() == list(range(6))
    for reference in saved:
        assert task.stored(reference, "weights").read_bytes() == content(reference["metadata"]["number"], BIG)
    assert task.latest()["version_id"] == 5


def test_a_file_that_is_rewritten_in_place_right_after_the_answer_is_not_torn(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    client = talk(checkpointer)
    saved = [client.save(write(task, number))["reference"] for number in range(3)]
    write(task, 9)
    gate.open("weights")
    checkpointer.flush(60)
    for number, reference in enumerate(saved):
        assert task.stored(reference, "weights").read_bytes() == content(number, BIG)


def test_every_field_does_what_save_does(task: Task, talk: Callable[[Checkpointer], Talker]) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    path = write(task, 0)
    tar = client.save(path, storage_format="tar", latest=False, snapshot="copy", attempt=0)["reference"]
    assert (tar["storage_format"], tar["latest"], tar["name"]) == ("tar", False, "mfchckpt")
    newest = client.save(path)["reference"]
    checkpointer.flush(60)
    assert task.latest()["key"] == newest["key"]


def bad_saves() -> list[tuple[dict[str, Any], str, str]]:
    """Fields, the kind of the error, and what it says."""
    return [
        ({}, "UsageError", "path='' is not an absolute path"),
        ({"path": "out"}, "UsageError", "path='out' is not an absolute path. The agent has another working directory"),
        ({"path": "/a\0b"}, "UsageError", "is not an absolute path"),
        ({"path": 3}, "UsageError", "The field 'path' of a save is no str: 3"),
        ({"path": "/nothing/here"}, "SnapshotError", "Cannot save /nothing/here: it does not exist"),
        ({"path": "/dev/null"}, "SnapshotError", "it is a device"),
        ({"path": "/tmp", "metdata": {}}, "UsageError", "A save has no field 'metdata'. It has path, name, metadata"),
        ({"path": "/tmp", "name": "a/b"}, "UsageError", "'a/b' cannot be the name of a checkpoint"),
        ({"path": "/tmp", "name": "x" * 500_000}, "UsageError", "xxx"),
        ({"path": "/tmp", "latest": 1}, "UsageError", "The field 'latest' of a save is no bool: 1"),
        ({"path": "/tmp", "snapshot": "move"}, "UsageError", "save() and then shutil.rmtree() does the same"),
        ({"path": "/tmp", "attempt": True}, "UsageError", "The field 'attempt' of a save is no int"),
        ({"path": "/tmp", "attempt": 3}, "SpoolError", "Attempt 3 of the task Flow/1/train/2 has ended"),
        ({"path": "/tmp", "storage_format": "zip"}, "UsageError", "storage_format='zip' is unknown"),
        ({"path": "/tmp", "snapshot": "magic"}, "UsageError", "snapshot='magic' is unknown"),
        ({"path": "/" + "ü" * 500_000}, "ProtocolError", "does not fit into a frame"),
    ]


def test_what_cannot_be_saved_says_why_and_the_connection_and_the_saver_go_on(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    first = client.save(write(task, 0))["reference"]
    pid = saver_pid(task)
    for fields, kind, says in bad_saves():
        # As a client in another language sends it: letters as they are.
        body = json.dumps({"op": "save", "seq": 7, **fields}, ensure_ascii=False).encode()
        client.sock.sendall(len(body).to_bytes(4, "big") + body)
        answer = client.answer(7)
        assert answer["kind"] == kind, fields
        assert says in answer["error"], answer
        assert list(answer)[:2] == ["seq", "error"]
    second = client.save(write(task, 1))["reference"]
    assert (first["version_id"], second["version_id"]) == (0, 1)
    assert saver_pid(task) == pid
    assert checkpointer.status()["socket_saves"] == 0


def test_metadata_costs_no_save_and_what_is_not_kept_of_it_is_in_the_answer(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    path = write(task, 0)
    large = {"x": "y" * socket_saver.MAX_METADATA, "step": 1}
    answer = client.save(path, metadata=large)
    assert answer["reference"]["metadata"] == {"x": "<not kept: larger than 256 KiB>", "step": 1}
    assert ["'x' is not kept" in line for line in answer["warnings"]] == [True]
    again = client.save(path, metadata=large)
    assert "warnings" not in again, "It is said once"
    for given, found in (([1, 2], [1, 2]), (None, {}), ("text", "text"), ({"a": [[[]]]}, {"a": [[[]]]})):
        assert client.save(path, metadata=given)["reference"]["metadata"] == found


@pytest.mark.parametrize("metadata", [b'{"loss": NaN, "best": [-Infinity]}', b'{"loss": "NaN", "half": "\\ud800"}'])
def test_an_answer_is_json_that_any_client_reads(
    task: Task, talk: Callable[[Checkpointer], Talker], metadata: bytes
) -> None:
    client = talk(task.start())
    path = json.dumps(str(write(task, 0))).encode()
    body = b'{"op": "save", "seq": 7, "path": %s, "metadata": %s}' % (path, metadata)
    client.sock.sendall(len(body).to_bytes(4, "big") + body)
    answer = client.answer(7)
    assert answer["reference"]["metadata"]["loss"] == "NaN"
    assert json.dumps(answer, allow_nan=False)
    assert json.dumps(answer, ensure_ascii=False).encode()


def test_an_answer_begins_as_the_page_promises_for_clients_without_a_json_parser(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    client = talk(task.start())
    assert list(client.save(write(task, 0), metadata={"error": "none"})) == ["seq", "id", "reference"]


def test_a_client_that_is_gone_before_its_answer_has_saved(task: Task) -> None:
    checkpointer = task.start()
    client = Talker(checkpointer.spool.directory)
    client.send({"op": "save", "path": str(write(task, 0))})
    client.close()
    wait_until(task.committed_versions, "it is in the store")
    assert task.committed_versions() == [0]


def test_the_step_may_end_while_a_save_is_under_way_and_it_is_in_the_store_or_refused(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    assert client.save(write(task, 0))["id"] == "0.mfchckpt.0"
    saver_ = saver_pid(task)
    kill(saver_, signal.SIGSTOP)
    client.send({"op": "save", "seq": 50, "path": str(write(task, 1))})
    # The agent reads what comes over one connection in order.
    assert client.ask({"op": "status"})["socket_saves"] == 1
    agent = agent_pid(checkpointer)
    checkpointer.close(clean=True)
    client.ask({"op": "status"})  # Answered in the round in which the goodbye is read, or after it.
    refused = client.save(write(task, 1))
    assert refused["kind"] == "UsageError"
    assert "The step has ended" in refused["error"]
    assert is_alive(agent)
    kill(saver_, signal.SIGCONT)
    assert client.answer(50)["reference"]["version_id"] == 1
    wait_until(lambda: not task.spool_exists() and not task.processes(), "agent and saver are gone")
    assert task.committed_versions() == [0, 1]


def test_only_the_tasks_own_goodbye_ends_the_step_also_after_it_came_back_to_another_agent(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    for number in range(2):
        client, other = talk(checkpointer), talk(checkpointer)
        other.send({"op": "bye"})
        other.ask({"op": "status"})
        assert client.save(write(task, number))["id"] == f"0.mfchckpt.{number}"
        victim = agent_pid(checkpointer)
        kill(victim)
        wait_until(lambda gone=victim: checkpointer.status()["pid"] != gone, "there is another agent")
    checkpointer.close(clean=True)
    wait_until(lambda: not task.spool_exists(), "the step is over")
    assert task.committed_versions() == [0, 1]


def test_the_saver_may_be_killed_and_the_next_save_has_another(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    client.save(write(task, 0))
    victim = saver_pid(task)
    kill(victim, signal.SIGSTOP)
    client.send({"op": "save", "seq": 50, "path": str(write(task, 1))})
    # The agent reads what comes over one connection in order.
    assert client.ask({"op": "status"})["socket_saves"] == 1
    kill(victim)
    answer = client.answer(50)
    assert answer["kind"] == "AgentError"
    assert "The saver died" in answer["error"]
    assert client.save(write(task, 2))["id"] == "0.mfchckpt.1"
    assert saver_pid(task) != victim
    checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]


def test_leases_of_saves_over_the_socket_survive_the_agent_that_took_them(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    """The saver sees that another agent has them before it goes the way of the one that was killed."""
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    reference = talk(checkpointer).save(write(task, 0))["reference"]
    saver_, agent = saver_pid(task), agent_pid(checkpointer)
    kill(agent)
    wait_until(lambda: not is_alive(saver_), "the saver has handed over and ended")
    write(task, 1)
    gate.open("weights")
    checkpointer.flush(60)
    assert task.stored(reference, "weights").read_bytes() == content(0, BIG)


def test_saves_beyond_the_most_that_may_wait_are_refused_at_once_and_the_others_done(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    (task.work / "small").write_bytes(b"x")
    client.save(task.work)
    stopped = saver_pid(task)
    kill(stopped, signal.SIGSTOP)
    path = str(task.work)
    for number in range(socket_saves.MAX_WAITING):
        client.send({"op": "save", "seq": 100 + number, "path": path, "name": f"n{number}"})
    refused = client.save(task.work)
    assert refused["kind"] == "BacklogError"
    assert f"{socket_saves.MAX_WAITING} saves wait already" in refused["error"]
    kill(stopped, signal.SIGCONT)
    ids = [client.answer(100 + number)["id"] for number in range(socket_saves.MAX_WAITING)]
    assert ids == [f"0.n{number}.{number + 1}" for number in range(socket_saves.MAX_WAITING)]


def test_a_save_that_cannot_be_done_in_time_is_answered(task: Task, talk: Callable[[Checkpointer], Talker]) -> None:
    checkpointer = task.start()
    client = talk(checkpointer)
    client.save(write(task, 0))
    stopped = saver_pid(task)
    kill(stopped, signal.SIGSTOP)
    path = str(write(task, 1))
    client.send({"op": "save", "seq": 50, "path": path, "timeout_s": 0.1})
    client.send({"op": "save", "seq": 51, "path": path, "timeout_s": 0.1})
    first, second = client.answers(50, 51)
    assert "goes on; 'list' will show it" in first["error"]
    assert "was not begun in time; nothing was saved" in second["error"]
    kill(stopped, signal.SIGCONT)
    wait_until(lambda: task.committed_versions() == [0, 1], "the first is in the store")
    assert client.save(write(task, 2))["id"] == "0.mfchckpt.2"


def test_a_save_over_the_socket_waits_for_room_and_the_agent_answers_others_meanwhile(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(max_pending=1)
    checkpointer = task.start()
    client, other = talk(checkpointer), talk(checkpointer)
    client.save(write(task, 0))
    client.send({"op": "save", "seq": 50, "path": str(write(task, 1))})
    wait_until(lambda: other.ask({"op": "status"})["socket_saves"] == 1, "it waits")
    assert other.ask({"op": "state", "id": "0.mfchckpt.0"})["state"] in ("ADMITTED", "UPLOADING")
    gate.open("weights")
    assert client.answer(50)["id"] == "0.mfchckpt.1"


def test_a_retry_saves_under_its_own_attempt_also_where_the_agent_of_the_one_before_goes_on(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    gate = task.gate()
    gate.hold("weights")
    first = task.start()
    assert talk(first).save(write(task, 0))["id"] == "0.mfchckpt.0"
    first.close(clean=False)
    second = task.start(attempt=1)
    client = talk(second)
    assert client.save(write(task, 1))["id"] == "1.mfchckpt.0"
    stale = client.save(write(task, 2), attempt=0)
    assert "Attempt 0 of the task Flow/1/train/2 has ended: attempt 1 runs now" in stale["error"]
    gate.open("weights")
    second.flush(60)
    assert task.committed() == [(0, 0), (1, 0)]


def test_no_saver_is_started_for_those_who_do_not_need_one(task: Task) -> None:
    checkpointer = task.start()
    save_in_task(checkpointer, task, 0)
    checkpointer.flush(60)
    assert savers(task) == []


def test_a_save_that_fits_a_frame_to_the_last_byte_ends_no_agent(
    task: Task, talk: Callable[[Checkpointer], Talker]
) -> None:
    """It is sent on with a number, which must fit as well."""
    checkpointer = task.start()
    client = talk(checkpointer)
    agent = agent_pid(checkpointer)
    for spare in range(60):
        message: dict[str, Any] = {"op": "save", "seq": 100 + spare, "name": ""}
        around = len(json.dumps(message, separators=(",", ":")))
        body = json.dumps({**message, "name": "x" * (protocol.MAX_FRAME - around - spare)}, separators=(",", ":"))
        client.sock.sendall(len(body).to_bytes(4, "big") + body.encode())
        assert client.answer(100 + spare)["kind"] in ("ProtocolError", "UsageError")
    assert client.ask({"op": "status"})["pid"] == agent

"""What hangs, lies or is damaged: it is reported, bounded in time, and never uploaded as if it were whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from async_ckpt.errors import AgentError, FlushError, StoreError, WaitTimeout
from async_ckpt.ipc import protocol
from async_ckpt.spool.journal import FAILED
from async_ckpt.system.files import locked
from async_ckpt.system.log import write_lines_with
from async_ckpt.task import checkpointer as checkpointer_module
from harness.tasks.repeated_saves import BIG, assert_all_in_order, save, save_and_die
from harness.tasks.task import Task, agent_pid, close_and_kill, content, is_alive, kill, uploader_pid, wait_until


def test_a_spool_whose_lock_somebody_else_holds_is_a_clear_error(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer_module, "NO_AGENT_START_S", 1.0)
    task.set(reply_timeout_s=0.3)
    checkpointer = task.start()
    spool = checkpointer.spool
    close_and_kill(checkpointer)
    wait_until(lambda: not is_alive(agent_pid(checkpointer)), "the agent is gone")
    with locked(spool.path("agent.lock"), timeout_s=5), pytest.raises(AgentError, match="holds this spool") as caught:
        task.start()
    assert "agent.lock" in str(caught.value)
    assert "fuser" in caught.value.hint


def test_two_tasks_on_one_spool_share_one_agent(task: Task) -> None:
    first, second = task.start(), task.start()
    assert first.status()["pid"] == second.status()["pid"]
    references = [save(first, task, 0), save(second, task, 1)]
    assert [reference["version_id"] for reference in references] == [0, 1]
    first.flush(60)
    assert_all_in_order(task, references)


def test_saves_return_and_questions_end_while_the_agent_hangs(task: Task) -> None:
    task.set(reply_timeout_s=0.5)
    checkpointer = task.start()
    reference = save(checkpointer, task, 0)
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    try:
        # Renamed over: a writer in place would wait for the hung agent, for as long as the kernel lets it.
        for number in range(1, 20):
            (task.work / "new").write_bytes(content(number, BIG))
            os.replace(task.work / "new", task.work / "weights")
            started = time.monotonic()
            checkpointer.save(task.work, metadata={"number": number})
            assert time.monotonic() - started < 5, "save() waited for the agent"
        with pytest.raises(WaitTimeout):
            checkpointer.status()
        with pytest.raises((WaitTimeout, FlushError)):
            checkpointer.flush(0.5)
        with pytest.raises(WaitTimeout):
            checkpointer.wait("0.mfchckpt.19", 0.2)
        assert reference["version_id"] == 0
    finally:
        kill(agent, signal.SIGCONT)
    checkpointer.flush(60)
    assert task.committed_versions() == list(range(20))


def test_what_was_written_while_nobody_held_a_lease_is_reported_and_never_uploaded(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 2, "both")
    # Number 1 is linked to this inode, and nobody is there to see this; number 0 is linked to the one before.
    with open(task.work / "weights", "r+b") as file:
        file.write(b"torn")
    gate.open("weights")
    checkpointer = task.start(attempt=1)
    wait_until(lambda: task.committed(), "the clean one is committed")
    assert checkpointer.state("0.mfchckpt.1")[0] == FAILED
    assert "weights was written to" in checkpointer.state("0.mfchckpt.1")[1]
    with pytest.raises(StoreError, match="weights was written to"):
        checkpointer.wait("0.mfchckpt.1", 10)
    assert task.committed() == [(0, 0)]
    said: list[str] = []
    write_lines_with(said.append)
    checkpointer.flush(60)
    assert any("0.mfchckpt.1" in line and "earlier attempt" in line for line in said)
    found = checkpointer.load_newest("fresh", str(task.base / "loaded"))
    assert found is not None
    assert found["metadata"] == {"number": 0}


def test_a_loss_is_told_although_the_task_that_could_have_been_told_was_killed(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    save_and_die(task, 2, "both")
    with open(task.work / "weights", "r+b") as file:
        file.write(b"torn")
    gate.open("weights")
    # Its agent finds the loss, has nobody to tell, and brings in the rest.
    save_and_die(task, 1, "task")
    wait_until(lambda: not task.processes(), "the agent has drained")
    assert task.committed() == [(0, 0), (0, 2)]
    checkpointer = task.start(attempt=1)
    said: list[str] = []
    write_lines_with(said.append)
    checkpointer.flush(60)
    (line,) = [line for line in said if "of an earlier attempt" in line]
    assert "0.mfchckpt.1 of an earlier attempt is not in the store: weights was written to" in line


def test_draining_ends_at_its_deadline_and_keeps_what_is_left(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    task.set(drain_timeout_s=0.5)
    save_and_die(task, 3, "task")
    wait_until(lambda: not task.processes(), "the agent has given up")
    assert task.committed() == []
    assert len(task.spool.records.ids()) == 3
    # It made every snapshot stand on its own before it let the leases go.
    (task.work / "weights").write_bytes(content(99, BIG))
    gate.open("weights")
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert task.committed() == [(0, 0), (0, 1), (0, 2)]
    assert [item["metadata"]["number"] for item in checkpointer.list()] == [2, 1, 0]


def test_a_stopped_uploader_of_a_killed_agent_never_writes_again(task: Task) -> None:
    """It could move ``latest`` backwards, or put torn bytes over a file whose lease was let go since."""
    gate = task.gate()
    gate.hold("latest")
    checkpointer = task.start()
    references = [save(checkpointer, task, 0)]
    wait_until(lambda: gate.waiting("latest"), "the first is about to become the latest")
    orphan = uploader_pid(checkpointer)
    kill(orphan, signal.SIGSTOP)
    kill(agent_pid(checkpointer))
    wait_until(lambda: not is_alive(orphan), "the uploader went with its agent")
    gate.open("latest")
    references += [save(checkpointer, task, number) for number in range(1, 4)]
    checkpointer.flush(60)
    assert_all_in_order(task, references)


def test_a_checkpoint_that_waits_for_its_turn_can_be_loaded_after_the_trainer_rewrote_it(task: Task) -> None:
    """Its leases were let go with its last byte, so its snapshot on disk is the trainer's again."""
    gate = task.gate()
    gate.hold("first")
    checkpointer = task.start()
    (task.work / "first").write_bytes(content(0, BIG))
    checkpointer.save(task.work)
    (task.work / "first").unlink()
    second = save(checkpointer, task, 1)
    wait_until(lambda: checkpointer.state("0.mfchckpt.1")[0] == "UPLOADED", "it is uploaded")
    wait_until(lambda: checkpointer.status()["leases"] <= 1, "its lease was let go")
    (task.work / "weights").write_bytes(content(2, BIG))
    checkpointer.load(second, str(task.base / "loaded"))
    assert (task.base / "loaded/weights").read_bytes() == content(1, BIG)
    found = task.start(attempt=1).load_newest("fresh", str(task.base / "again"))
    assert found is not None
    assert found["version_id"] == 1
    assert (task.base / "again/weights").read_bytes() == content(1, BIG)
    gate.open("first")
    checkpointer.flush(60)


def test_a_malformed_frame_does_not_end_the_agent(task: Task) -> None:
    checkpointer = task.start()
    agent = checkpointer.status()["pid"]
    frames: list[protocol.Message] = [
        {"op": "admit", "id": "x", "guard": 5, "fds": 0},
        {"op": "admit", "id": "x", "guard": [{}], "fds": 0},
        {"op": "admit", "id": ["../../x"], "guard": []},
        {"op": "admit", "id": "../spool", "guard": []},
        {"op": "state", "id": {"a": 1}, "seq": 2},
        {"op": "state", "id": "\0", "seq": 2},
        {"op": "wait", "id": "nobody", "timeout_s": "long", "seq": 3},
        {"op": "wait", "id": "nobody", "timeout_s": -1, "seq": 3},
        {"op": ["status"], "seq": 4},
        {"op": "hello", "v": 99, "seq": 5},
        {"op": "hello"},
        {},
    ]
    for frame in frames:
        with protocol.connect(checkpointer.spool.path("agent.sock"), 10) as sock:
            sock.sendall(protocol.encode({"op": "hello", "v": protocol.VERSION, "pid": 1, "seq": 1}))
            sock.sendall(protocol.encode(frame))
            sock.sendall(b"\xff\xff\xff\xff")
            while sock.recv(4096):
                pass
    assert checkpointer.status()["pid"] == agent


def test_a_damaged_record_fails_alone_and_says_so(task: Task) -> None:
    save_and_die(task, 2, "both")
    ready = Path(task.spool.path("ready"))
    for name, text in {"0.bad.7": "{", "0.bad.8": '{"reference": "x"}', "0.bad.9": "[]"}.items():
        (ready / f"{name}.json").write_text(text)
    checkpointer = task.start(attempt=0)
    with pytest.raises(FlushError, match=r"0\.bad\.7"):
        checkpointer.flush(60)
    assert task.committed_versions() == [0, 1]
    assert checkpointer.status()["failed_count"] == 3


def test_what_an_earlier_agent_made_private_is_no_donor_for_the_next_snapshot(task: Task) -> None:
    """It died before the saver heard of it; its successor gets the leases of both, on one inode."""
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    references = [save(checkpointer, task, 0)]
    agent = agent_pid(checkpointer)
    # The saver does not hear what happens to its leases: as if the agent had died right after each step.
    checkpointer._client._receive = lambda message: None  # type: ignore[method-assign]
    references.append(save(checkpointer, task, 1))
    kill(agent)
    wait_until(lambda: agent_pid(checkpointer) != agent, "there is another agent")
    references.append(save(checkpointer, task, 2))
    del checkpointer._client._receive
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_in_order(task, references)


@pytest.mark.long
def test_a_file_in_the_store_is_not_guarded_again_by_the_next_agent(task: Task) -> None:
    gate = task.gate()
    gate.hold("slow")
    checkpointer = task.start()
    (task.work / "slow").write_bytes(content(0, BIG))
    checkpointer._client._receive = lambda message: None  # type: ignore[method-assign]
    reference = save(checkpointer, task, 1)
    wait_until(task.stored(reference, "weights").exists, "the first file is in the store")
    del checkpointer._client._receive
    wait_until(lambda: checkpointer.status()["leases"] == 1, "the first file was let go")
    (task.work / "weights").write_bytes(content(2, BIG))
    kill(agent_pid(checkpointer))
    wait_until(lambda: checkpointer._client.leases_held == 1, "the saver heard that nothing is to be guarded")
    gate.open("slow")
    checkpointer.flush(60)
    assert task.stored(reference, "weights").read_bytes() == content(1, BIG)
    assert checkpointer.state(reference.id)[0] == "COMMITTED"

"""What has gone wrong once is taken up again: the same bytes, another agent, another spool."""

from __future__ import annotations

import errno
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import SpoolError
from async_ckpt.ipc import protocol
from async_ckpt.spool.journal import COMMITTED, FAILED
from async_ckpt.spool.spool import Spool
from async_ckpt.task import launch
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import TASK, Task, agent_pid, content, kill, uploader_pid, wait_until


@pytest.mark.parametrize("killed", [False, True], ids=["the agent goes on", "another agent"])
def test_only_the_commit_is_repeated_where_all_bytes_were_stored_before_it_failed(task: Task, killed: bool) -> None:
    """Nobody guards the snapshot any more: what the trainer has written since must not get into the store."""
    metadata = Path(task.store.root, TASK.task_folder, "0.mfchckpt.0.metadata")
    metadata.mkdir(parents=True)  # Whoever commits is refused.
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    wait_until(lambda: checkpointer.state(first.id)[0] == FAILED, "its commit is refused")
    (task.work / "weights").write_bytes(content(1, BIG))
    pid = agent_pid(checkpointer)
    checkpointer.close(clean=False)
    if killed:
        kill(pid)
    metadata.rmdir()
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert checkpointer.state(first.id)[0] == COMMITTED
    assert task.stored(first, "weights").read_bytes() == content(0, BIG)


def test_a_commit_of_an_earlier_attempt_whose_record_was_not_removed_in_time_is_known(task: Task) -> None:
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    record = Path(checkpointer.spool.path("ready", f"{first.id}.json"))
    admitted = record.read_bytes()
    save(checkpointer, task, 1)
    checkpointer.flush(60)
    kill(agent_pid(checkpointer))
    record.write_bytes(admitted)  # As if the agent had died before it removed it.
    checkpointer = task.start(attempt=1)
    checkpointer.flush(60)
    assert checkpointer.state(first.id)[0] == COMMITTED
    assert checkpointer.status()["failed_count"] == 0
    wait_until(lambda: not record.exists(), "the record is removed")


def test_an_agent_whose_starter_was_killed_before_it_was_named_is_found(task: Task) -> None:
    pid = os.fork()
    if not pid:

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        launch.name_socket = die  # type: ignore[assignment]
        Checkpointer.start(task.root, replace(TASK, attempt=0), task.store, Config.from_env(), uploader="process")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    spool = task.spool
    wait_until(lambda: os.path.exists(spool.path("agent.sock")), "the agent has named itself")
    checkpointer = task.start(attempt=1)
    assert checkpointer.status()["pid"] == int(Path(spool.path("agent.pid")).read_text())


def test_an_agent_that_is_gone_when_it_is_called_is_started_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, refused = protocol.connect, []

    def refuse_once(path: str, timeout_s: float) -> socket.socket:
        if path.endswith(".sock") and os.path.exists(path) and not refused:
            refused.append(path)
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return connect(path, timeout_s)

    monkeypatch.setattr(protocol, "connect", refuse_once)
    checkpointer = task.start()
    assert refused
    save(checkpointer, task, 0)
    checkpointer.flush(60)
    assert task.committed_versions() == [0]


def test_a_spool_that_its_last_agent_takes_away_in_this_moment_is_made_anew(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, gone = Spool.create.__func__, []  # type: ignore[attr-defined]

    def vanish_once(cls: type[Spool], *arguments: Any) -> Spool:
        if not gone:
            gone.append(arguments)
            Path(task.root).mkdir(parents=True, exist_ok=True)
            raise SpoolError("The spool cannot be made") from FileNotFoundError(errno.ENOENT, "No such file")
        made: Spool = create(cls, *arguments)
        return made

    monkeypatch.setattr(Spool, "create", classmethod(vanish_once))
    checkpointer = task.start()
    assert gone
    save(checkpointer, task, 0)
    checkpointer.flush(60)


def test_an_agent_that_lives_on_opens_the_store_as_the_later_attempt_does(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of an artifact store expire: what waits for the store is sent with those of the attempt that runs."""
    task.store = replace(task.store, options={"access_from": "ACCESS_OF_TEST"})
    monkeypatch.setenv("ACCESS_OF_TEST", "the first keys")
    gate = task.gate()
    gate.hold(".0.mfchckpt.0/")
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    agent, before = agent_pid(checkpointer), uploader_pid(checkpointer)
    assert b"the first keys" in Path(f"/proc/{before}/environ").read_bytes()
    checkpointer.close(clean=False)
    monkeypatch.setenv("ACCESS_OF_TEST", "the second keys")
    checkpointer = task.start(attempt=1)
    assert agent_pid(checkpointer) == agent
    after = wait_until(lambda: (pid := uploader_pid(checkpointer)) != before and pid, "another uploader runs")
    environment = Path(f"/proc/{after}/environ").read_bytes()
    assert b"the second keys" in environment
    assert b"the first keys" not in environment
    gate.open_all()
    checkpointer.flush(60)
    assert checkpointer.state(first.id)[0] == COMMITTED
    on_disk = b"".join(path.read_bytes() for path in Path(task.root).rglob("*") if path.is_file())
    assert b"the second keys" not in on_disk

"""Whatever removes files under a running task: what was saved is stored, or what is lost is named; nothing hangs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from async_ckpt.config import ENV_ATTEMPT, ENV_SPOOL
from async_ckpt.errors import FlushError, StoreError
from async_ckpt.spool import journal
from async_ckpt.spool.upkeep import is_held
from async_ckpt.task.checkpointer import Checkpointer
from harness.kills import cleaners
from harness.kills.cleaners import KINDS, PHASES, remove
from harness.tasks.repeated_saves import assert_all_in_order, save
from harness.tasks.task import Task, agent_pid, kill, wait_until

#: Each kind in one phase, here; the rest when there is time.
CASES = [
    pytest.param(kind, phase, marks=[] if number == first % len(PHASES) else [pytest.mark.long])
    for first, kind in enumerate(KINDS)
    for number, phase in enumerate(PHASES)
    if number in (first % len(PHASES), (first + 2) % len(PHASES))
]


@pytest.mark.parametrize(("kind", "phase"), CASES)
def test_what_vanishes_is_made_again_or_named(task: Task, kind: str, phase: str) -> None:
    cleaners.run(task, kind, phase)


def test_it_is_said_at_once_what_was_removed_and_made_again(task: Task) -> None:
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    Path(checkpointer.spool.path("agent.lock")).unlink()
    wait_until(lambda: said, "the log says so")
    assert "Made again: agent.lock" in said[0]
    assert "SPOOL_DIR" in said[0]
    assert said[0] in checkpointer.status()["warnings"]


def test_a_snapshot_that_is_removed_is_reported_by_name_before_the_flush(task: Task) -> None:
    said: list[str] = []
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start(report=said.append)
    first = save(checkpointer, task, 0)
    wait_until(lambda: gate.waiting("weights"), "the first is uploaded")
    remove(Path(checkpointer.spool.path("data")))
    wait_until(lambda: any(first.id in line for line in said), "the log names it")
    (line,) = [line for line in said if first.id in line]
    assert "weights was removed from the spool before it was stored" in line
    gate.open_all()
    second = save(checkpointer, task, 1)
    second.wait(60)


def test_there_are_never_two_agents_though_all_names_of_the_first_are_gone(task: Task) -> None:
    """Who starts one finds the directory locked, and then the first one."""
    task.set(rescan_s=3)
    checkpointer = task.start()
    agent = checkpointer.status()["pid"]
    for name in ("agent.sock", "agent.lock", "agent.pid"):
        Path(checkpointer.spool.path(name)).unlink()
    other = task.start()
    assert other.status()["pid"] == agent
    assert agent_pid(other) == agent


def test_the_directory_is_free_when_the_agent_in_a_thread_is_gone_though_a_forked_child_lives(task: Task) -> None:
    checkpointer = task.start(uploader="thread")
    wait_until(lambda: is_held(checkpointer.spool.directory), "the agent holds it")
    go, stay = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(stay)
        os.read(go, 1)
        os._exit(0)
    try:
        fd = os.open(checkpointer.spool.directory, os.O_RDONLY)
        save(checkpointer, task, 0)
        checkpointer.flush(60)
        checkpointer.close(clean=True)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    finally:
        os.close(stay)
        os.waitpid(pid, 0)
        os.close(go)


def test_versions_never_fall_behind_what_was_used(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    task.set(rescan_s=600)  # The agent does not look.
    owner = task.start()
    references = [save(owner, task, number) for number in range(3)]
    counter = Path(owner.spool.path("versions.0"))
    monkeypatch.setenv(ENV_SPOOL, owner.spool.directory)
    monkeypatch.setenv(ENV_ATTEMPT, "0")
    subprocess = Checkpointer.from_environment()
    for number, saver in enumerate([owner, subprocess], start=3):
        counter.unlink()
        references.append(save(saver, task, number))
    owner.flush(60)
    assert [reference["version_id"] for reference in references] == [0, 1, 2, 3, 4]
    assert_all_in_order(task, references)


def test_what_is_in_the_store_is_never_reported_as_lost(task: Task) -> None:
    """The spool, and the agent that knew, are gone."""
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    for number in range(3):
        save(checkpointer, task, number)
    wait_until(lambda: len(task.committed()) == 3, "they are in the store")
    kill(agent_pid(checkpointer))
    remove(Path(checkpointer.spool.directory))
    checkpointer.flush(60)
    assert len(checkpointer.committed()) == 3


def test_who_waits_for_what_nobody_has_any_more_is_told_so(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    reference = save(checkpointer, task, 0)
    wait_until(lambda: gate.waiting("weights"), "it is uploaded")
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    remove(Path(checkpointer.spool.directory))
    kill(agent)
    with pytest.raises(StoreError, match="removed from the spool"):
        reference.wait(60)
    assert reference.done()
    with pytest.raises(FlushError, match=reference.id):
        checkpointer.flush(60)


def age(folder: Path) -> None:
    """Times of 40 days ago for all there is, but for the trainer's own files."""
    long_ago = time.time() - 40 * 24 * 3600
    for path in [folder, *(path for path in folder.rglob("*") if path.name != "weights")]:
        with contextlib.suppress(OSError):
            os.utime(path, (long_ago, long_ago), follow_symlinks=False)


def _systemd(root: Path) -> None:
    """It goes by the time of the last change of status as well, which nobody can set: so by an age of a second."""
    time.sleep(1.5)
    config = root.parent / "tmpfiles.conf"
    config.write_text(f"d {root} - - - 1s\n")
    subprocess.run(["systemd-tmpfiles", "--clean", str(config)], check=True, capture_output=True, timeout=60)


def _find(root: Path) -> None:
    """What people put into cron."""
    subprocess.run(["find", str(root), "-mindepth", "1", "-mtime", "+10", "-delete"], check=False, timeout=60)


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="needs systemd-tmpfiles")
@pytest.mark.parametrize("idle", [True, False], ids=["idle", "during an upload"])
def test_systemd_tmpfiles_leaves_alone_what_an_agent_holds(task: Task, idle: bool) -> None:
    gate, said = task.gate(), list[str]()
    if not idle:
        gate.hold("weights")
    checkpointer = task.start(report=said.append)
    references = [save(checkpointer, task, 0)]
    if idle:
        references[0].wait(60)
        wait_until(lambda: not checkpointer.spool.records.ids(), "its snapshot is removed")
    else:
        wait_until(lambda: gate.waiting("weights"), "it is uploaded")
    spool = Path(checkpointer.spool.directory)
    abandoned = spool.parent / "abandoned"
    (abandoned / "folder").mkdir(parents=True)
    (abandoned / "folder/file").touch()
    before = sorted(spool.rglob("*"))
    age(spool.parent)
    _systemd(spool.parent)
    assert not abandoned.exists(), "it has cleaned"
    assert sorted(spool.rglob("*")) == before
    gate.open_all()
    references.append(save(checkpointer, task, 1))
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert said == []


def test_what_goes_by_age_alone_finds_nothing_old(task: Task) -> None:
    task.set(touch_s=0.5)
    said: list[str] = []
    checkpointer = task.start(report=said.append)
    references = [save(checkpointer, task, 0)]
    references[0].wait(60)
    wait_until(lambda: not checkpointer.spool.records.ids(), "its snapshot is removed")
    spool = Path(checkpointer.spool.directory)
    age(spool)
    fresh = time.time() - 3600
    names = [path for path in spool.iterdir() if path.name != "work"]
    wait_until(lambda: all(path.lstat().st_mtime > fresh for path in names), "their times are set anew")
    before = sorted(spool.rglob("*"))
    _find(spool)
    assert sorted(spool.rglob("*")) == before
    references.append(save(checkpointer, task, 1))
    checkpointer.flush(60)
    assert_all_in_order(task, references)
    assert said == []


def test_the_kernel_lists_the_socket_under_the_name_it_has(task: Task) -> None:
    checkpointer = task.start()
    path = os.path.realpath(checkpointer.spool.path("agent.sock"))
    listed = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
    assert path in listed or len(path) >= 100


def test_the_journal_is_written_anew_from_what_was_removed(task: Task) -> None:
    checkpointer = task.start()
    first = save(checkpointer, task, 0)
    first.wait(60)
    path = Path(checkpointer.spool.path("journal"))
    content_before = path.read_bytes()
    path.unlink()
    wait_until(path.exists, "it is there again")
    assert path.read_bytes() == content_before
    second = save(checkpointer, task, 1)
    second.wait(60)
    assert journal.read(str(path))[second.id].state == journal.COMMITTED

"""Everybody saves at once: every save survives with its own content; and saving leaves nothing behind in the task."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.ipc.server import MAX_CONNECTIONS
from async_ckpt.system.files import locked
from async_ckpt.task.checkpointer import Checkpointer
from harness.flow_runs.environments import with_our_modules
from harness.tasks.many_savers import BIG, Forked, Subprocess, Thread, as_stored, save_some
from harness.tasks.task import Task, agent_pid, close_and_kill, content, is_alive, kill, wait_until
from tests.spread import first_of

COUNT = 6


def assert_all_survived(task: Task, saved: list[dict[str, Any]]) -> None:
    versions = [reference["version_id"] for reference in saved]
    assert sorted(versions) == list(range(len(saved))), "every save has a version of its own"
    assert task.committed_versions() == sorted(versions)
    assert [reference["key"] for reference in saved if not as_stored(task.store.root, reference)] == []
    assert task.latest()["version_id"] == max(versions)


def test_task_threads_forks_and_four_subprocesses_save_at_once_and_all_survive(task: Task) -> None:
    checkpointer = task.start()
    environment = task.environment(checkpointer)
    processes = [Subprocess(environment, task.work / f"p{n}", n, COUNT).ready() for n in range(4)]
    forks = [Forked(checkpointer, task.work / f"f{n}", 10 + n, COUNT) for n in range(2)]
    threads = [Thread(checkpointer, task.work / f"t{n}", 20 + n, COUNT) for n in range(2)]
    for process in processes:
        process.go()
    saved = save_some(checkpointer, task.work / "own", 30, COUNT)
    for saver in (*threads, *forks, *processes):
        saved += saver.references()
    checkpointer.flush(120)
    assert len(saved) == 9 * COUNT
    assert_all_survived(task, saved)


@pytest.mark.long
def test_subprocesses_save_while_the_agent_is_killed_under_them(task: Task) -> None:
    checkpointer = task.start()
    environment = task.environment(checkpointer)
    processes = [Subprocess(environment, task.work / f"p{n}", n, COUNT).ready() for n in range(2)]
    for process in processes:
        process.go()
    saved = save_some(checkpointer, task.work / "own", 30, COUNT)
    kill(agent_pid(checkpointer))
    saved += save_some(checkpointer, task.work / "own", 31, COUNT)
    for process in processes:
        saved += process.references()
    checkpointer.flush(120)
    assert_all_survived(task, saved)


def test_a_subprocess_saves_while_the_agent_hangs(task: Task) -> None:
    checkpointer = task.start()
    agent = agent_pid(checkpointer)
    wait_until(lambda: checkpointer.spool.start is not None, "it is known which start of the attempt this is")
    kill(agent, signal.SIGSTOP)
    try:
        process = Subprocess(task.environment(checkpointer), task.work / "p", 0, 1).ready()
        process.go()
        saved = process.references()
    finally:
        kill(agent, signal.SIGCONT)
    checkpointer.flush(60)
    assert_all_survived(task, saved)


def test_a_subprocess_saves_where_no_agent_can_be_had(task: Task) -> None:
    """Nobody could guard links, so it copies; the next agent finds what it admitted."""
    task.set(reply_timeout_s=0.3)
    checkpointer = task.start()
    environment, lock = task.environment(checkpointer), checkpointer.spool.path("agent.lock")
    wait_until(lambda: checkpointer.spool.start is not None, "it is known which start of the attempt this is")
    close_and_kill(checkpointer)
    with locked(lock, timeout_s=5):
        process = Subprocess(environment, task.work / "p", 0, 3).ready()
        process.go()
        saved = process.references()
        assert task.committed() == []
    task.set(reply_timeout_s=10)
    task.start().flush(60)
    assert_all_survived(task, saved)


def test_a_subprocess_that_gets_no_connection_any_more_saves_all_the_same(task: Task) -> None:
    checkpointer = task.start()
    with contextlib.ExitStack() as stack:
        # With the task's own, these are all there may be.
        for _ in range(MAX_CONNECTIONS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            folder = os.open(checkpointer.spool.directory, os.O_PATH)
            stack.callback(os.close, folder)
            client.connect(f"/proc/self/fd/{folder}/agent.sock")
        process = Subprocess(task.environment(checkpointer), task.work / "p", 0, 2).ready()
        process.go()
        saved = process.references()
        checkpointer.flush(60)
    assert_all_survived(task, saved)


@pytest.mark.parametrize("uploader", ["process", "thread"])
def test_a_forked_child_saves_and_its_end_does_not_disturb_the_parent(task: Task, uploader: str) -> None:
    checkpointer = task.start(uploader=uploader)
    saved = save_some(checkpointer, task.work / "own", 0, 2)
    saved += Forked(checkpointer, task.work / "child", 1, 3).references()
    saved += save_some(checkpointer, task.work / "own", 2, 2)
    checkpointer.flush(60)
    assert_all_survived(task, saved)
    assert checkpointer.status()["failed_count"] == 0


def _saver(checkpointer: Checkpointer, folder: Path, results: Any) -> None:
    results.put(save_some(checkpointer, folder, 5, 2))


def test_a_multiprocessing_child_by_fork_saves(task: Task) -> None:
    checkpointer = task.start()
    saved = save_some(checkpointer, task.work / "own", 0, 1)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_saver, args=(checkpointer, task.work / "child", results))
    child.start()
    saved += results.get()
    child.join(60)
    assert child.exitcode == 0
    results.close()
    checkpointer.flush(60)
    assert_all_survived(task, saved)


def test_a_fork_while_another_thread_talks_to_the_agent_does_not_deadlock(task: Task) -> None:
    """The child copies a lock that is held by a thread which does not exist there."""
    checkpointer = task.start()
    client = checkpointer._client
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with client._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = Forked(checkpointer, task.work / "child", 1, 1)
    done.set()
    thread.join()
    saved = child.references()
    checkpointer.flush(60)
    assert_all_survived(task, saved)


def test_the_leases_of_a_parent_outlive_a_child_that_was_forked_after_the_save(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    saved = save_some(checkpointer, task.work / "own", 0, 1)
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    (task.work / "own/weights").write_bytes(content(77, BIG))
    gate.open("weights")
    checkpointer.flush(60)
    assert_all_survived(task, saved)


# -- nothing is left in the task ---------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def zombies() -> list[int]:
    """Dead children of this process that nobody has collected."""
    found = []
    for name in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdecimal() else []
        except OSError:
            continue
        if fields[:2] == ["Z", str(os.getpid())]:
            found.append(int(name))
    return found


@pytest.mark.parametrize("uploader", first_of(["process", "thread"]))
def test_two_hundred_saves_leave_no_descriptor_thread_or_file_behind(task: Task, uploader: str) -> None:
    checkpointer = task.start(uploader=uploader)
    save_some(checkpointer, task.work / "own", 0, 2)
    checkpointer.flush(60)
    wait_until(lambda: checkpointer._client.leases_held == 0, "leases were let go")
    before, threads = descriptors(), threading.active_count()
    for round_ in range(1, 5):
        save_some(checkpointer, task.work / "own", round_, 50)
        checkpointer.flush(120)
    wait_until(lambda: checkpointer._client.leases_held == 0, "leases were let go")
    wait_until(lambda: descriptors() <= before + 1, "descriptors were closed")
    # The uploader in a thread keeps as many more as it has had files side by side.
    kept = Config().files_in_flight if uploader == "thread" else 1
    wait_until(lambda: threading.active_count() <= threads + kept, "threads have ended")
    for folder in ("data", "ready"):
        wait_until(lambda folder=folder: os.listdir(checkpointer.spool.path(folder)) == [], "snapshots were given back")
    assert os.listdir(checkpointer.spool.path("staging")) == []


def test_the_agent_keeps_no_descriptor_of_what_is_committed(task: Task) -> None:
    checkpointer = task.start()
    save_some(checkpointer, task.work / "own", 0, 2)
    checkpointer.flush(60)
    folder = f"/proc/{checkpointer.status()['pid']}/fd"
    before = len(os.listdir(folder))
    save_some(checkpointer, task.work / "own", 1, 60)
    checkpointer.flush(60)
    wait_until(lambda: len(os.listdir(folder)) <= before, "the agent has closed them")


def test_killed_agents_do_not_stay_as_zombies(task: Task) -> None:
    checkpointer = task.start()
    before = set(zombies())
    for number in range(4):
        save_some(checkpointer, task.work / "own", number, 1)
        victim = agent_pid(checkpointer)
        kill(victim)
        wait_until(lambda old=victim: agent_pid(checkpointer) != old, "another agent was started")  # type: ignore[misc]
    checkpointer.flush(60)
    # The last one or two are collected with the next start.
    assert len(set(zombies()) - before) <= 2


def test_closing_leaves_no_process_thread_or_descriptor(task: Task) -> None:
    threads, before = threading.active_count(), descriptors()
    checkpointer = task.start()
    save_some(checkpointer, task.work / "own", 0, 3)
    checkpointer.flush(60)
    checkpointer.close(clean=True)
    wait_until(lambda: threading.active_count() <= threads, "threads have ended")
    wait_until(lambda: descriptors() <= before, "descriptors were closed")
    wait_until(lambda: not task.processes(), "agent and uploader have ended")
    assert not task.spool_exists()


_SAVE_AND_END = """
import os, sys
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK
root, store, work = sys.argv[1:]
checkpointer = Checkpointer.start(root, TASK, StoreSpec("local", store), Config.from_env(), uploader="process")
with open(work + "/x", "wb") as file:
    file.write(b"x" * 300_000)
checkpointer.save(work)
checkpointer.status()
print("saved")
sys.stdout.flush()
os._exit(0)
"""


def test_the_agent_holds_none_of_the_tasks_pipes(task: Task) -> None:
    """Whoever reads the task's output would wait for the agent's end as well."""
    gate = task.gate()
    gate.hold("x")
    done = subprocess.run(
        [sys.executable, "-c", _SAVE_AND_END, task.root, task.store.root, str(task.work)],
        capture_output=True, text=True, env=with_our_modules(), timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "saved\n"
    assert is_alive(int(Path(task.spool.path("agent.pid")).read_text()))
    gate.open("x")
    wait_until(lambda: not task.spool_exists(), "the agent has drained")

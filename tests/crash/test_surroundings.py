"""What a process finds when it is started, and what lives around it: closed descriptors, forked children, others of its
number in another PID namespace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.flow_runs.environments import with_our_modules
from harness.flow_runs.pods import why_no_pods
from harness.tasks.repeated_saves import BIG
from harness.tasks.task import Task, agent_pid, content, kill, wait_until
from tests.spread import first_of

_TASK = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK, agent_pid, uploader_pid

root, store, work, out = sys.argv[1:5]
checkpointer = Checkpointer.start(root, TASK, StoreSpec("local", store), Config.from_env(), uploader="process")
"""


def start(task: Task, code: str, *, before: str = "", out: Path | None = None) -> subprocess.Popen[str]:
    """A task's process of its own; ``before``: what a shell does with its descriptors first."""
    arguments = [sys.executable, "-c", _TASK + code, task.root, task.store.root, str(task.work), str(out or "")]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {before}', "sh", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=with_our_modules(),
    )  # fmt: skip


# -- closed descriptors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", first_of(["<&- >&- 2>&-", "<&-", ">&-", "2>&-"]))
def test_nothing_of_ours_has_the_number_of_a_closed_standard_stream(closed: str, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = """
def streams(pid):
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]

def garbage():
    for number in range(3):
        try:
            os.write(number, b"not for a socket " * 100)
        except OSError:
            pass  # A pipe's end for reading; what this is about is that nobody else gets it.

garbage()
saved = [checkpointer.save(work)]
garbage()
here, agent, uploader = streams(os.getpid()), streams(agent_pid(checkpointer)), streams(uploader_pid(checkpointer))
saved.append(checkpointer.save(work))
garbage()
checkpointer.flush(60)
Path(out).write_text(repr((here, agent, uploader, [one.state for one in saved])))
checkpointer.close(clean=True)
"""
    (task.work / "weights").write_bytes(content(0, BIG))
    process = start(task, code, before=closed, out=out)
    process.communicate(timeout=60)
    assert process.returncode == 0
    here, agent, uploader, states = eval(out.read_text())
    assert states == ["COMMITTED", "COMMITTED"]
    for number, stream in enumerate(("<&-", ">&-", "2>&-")):
        if stream in closed.split():
            assert here[number] == "/dev/null"
    for streams in agent, uploader:
        assert all(path == "/dev/null" or path.endswith("agent.log") for path in streams), streams


def test_a_command_with_closed_streams_saves(task: Task) -> None:
    checkpointer = task.start()
    (task.work / "weights").write_bytes(content(0, BIG))
    command = [sys.executable, "-m", "async_ckpt.cli", "save", str(task.work)]
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command],
        env=task.environment(checkpointer),
        timeout=60,
        check=True,
    )
    checkpointer.flush(60)
    assert task.committed_versions() == [0]


# -- few descriptors ---------------------------------------------------------------------------------------------------


_SAVE_WITH_FEW = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
theirs = []
while len(os.listdir("/proc/self/fd")) < 240:
    theirs.append(os.open(os.devnull, os.O_RDONLY))
for strategy in ("auto", "copy", "hardlink"):
    checkpointer.save(work, snapshot=strategy)
for fd in theirs:
    os.close(fd)
checkpointer.flush(60)
checkpointer.close(clean=True)
"""


@pytest.mark.parametrize("size", first_of([40_000, 2_000]), ids=["linked", "small"])
def test_a_trainer_that_has_used_up_its_descriptors_saves_as_many_files_as_any(task: Task, size: int) -> None:
    for number in range(400):
        (task.work / f"part-{number}").write_bytes(content(number, size))
    with start(task, _SAVE_WITH_FEW) as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert task.committed_versions() == [0, 1, 2]
    for number in range(400):
        stored = [path.read_bytes() for path in Path(task.store.root).rglob(f"part-{number}")]
        assert stored == [content(number, size)] * 3


# -- forked children ---------------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[list[int]]:
    """Children that live on; they end with the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        kill(pid)


def test_a_forked_child_that_lives_on_keeps_no_writer_waiting_and_no_agent_from_starting(
    task: Task, child: list[int]
) -> None:
    gate = task.gate()
    gate.hold("weights")
    (task.work / "weights").write_bytes(content(0, BIG))
    code = """
saved = checkpointer.save(work)
child = os.fork()
if not child:
    signal.pause()
print(agent_pid(checkpointer), child, flush=True)
signal.pause()
"""
    process = start(task, code)
    assert process.stdout is not None
    agent, forked = map(int, process.stdout.readline().split())
    child.append(forked)
    # Both at once: neither is to answer for the other.
    os.kill(agent, signal.SIGSTOP)
    process.kill()
    kill(agent)
    with process:
        pass
    assert os.path.exists(f"/proc/{forked}")
    # Not to wait: whoever has to gets an error.
    fd = wait_until(lambda: _open_at_once(task.work / "weights"), "no lease is left", 20)
    os.close(fd)
    gate.open_all()
    again = task.start(attempt=1)
    again.flush(60)
    assert task.committed() == [(0, 0)]


def _open_at_once(path: Path) -> int:
    """0: a lease forbids it."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except BlockingIOError:
        return 0


# -- another PID namespace ---------------------------------------------------------------------------------------------

_ELSEWHERE = """
import os, signal, sys
from async_ckpt.task.checkpointer import Checkpointer

agent = int(sys.argv[1])
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(agent - 1))
innocent = os.fork()
if not innocent:
    signal.pause()
assert innocent == agent, (innocent, agent)
checkpointer = Checkpointer.from_environment()
saved = checkpointer.save(sys.argv[2])
print(saved.version_id, flush=True)
sys.stdin.readline()
checkpointer.flush(60)
print(os.waitpid(innocent, os.WNOHANG), flush=True)
os.kill(innocent, signal.SIGKILL)
"""


@pytest.mark.parametrize("proc", [["--mount-proc"], []])
def test_a_saver_in_another_pid_namespace_has_its_leases_answered_and_nobody_is_hit(
    proc: list[str], task: Task
) -> None:
    if reason := why_no_pods():
        pytest.skip(reason)
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    agent = agent_pid(checkpointer)
    (task.work / "weights").write_bytes(content(0, BIG))
    command = [sys.executable, "-c", _ELSEWHERE, str(agent), str(task.work)]
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", *proc, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=task.environment(checkpointer),
    ) as saver:  # fmt: skip
        assert saver.stdout is not None
        assert saver.stdin is not None
        assert saver.stdout.readline() == "0\n"
        assert checkpointer.status()["leases"] == 1
        # Waits until the agent has heard of it, and copied the file.
        (task.work / "weights").write_bytes(content(1, BIG))
        gate.open_all()
        saver.stdin.write("\n")
        saver.stdin.flush()
        assert saver.stdout.readline() == "(0, 0)\n", "somebody else has got a signal"
    assert saver.returncode == 0
    assert agent_pid(checkpointer) == agent
    stored = Path(task.store.root, checkpointer.list()[0]["key"], "weights")
    assert stored.read_bytes() == content(0, BIG)

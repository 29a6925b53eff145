"""What was started with signals ignored or blocked (nohup, a shell's background, a supervisor) works all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from async_ckpt.task.termination import Termination
from harness.common import log_lines
from harness.flow_runs.environments import with_our_modules
from harness.tasks.task import Task, wait_until
from tests.spread import spread

#: Runs a command with everything ignored or blocked that can be.
_DEAF = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    if sys.argv[1] == "ignored":
        signal.signal(number, signal.SIG_IGN)
if sys.argv[1] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[2], sys.argv[2:])
"""


def deaf(how: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", _DEAF, how, sys.executable, *arguments]


def masks(pid: int | str) -> dict[str, int]:
    """Signals that a process ignores and blocks, as bits."""
    fields = [line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {name: int(value, 16) for name, value in fields if name in ("SigIgn", "SigBlk")}


def bits(*numbers: int) -> int:
    return sum(1 << (number - 1) for number in numbers)


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_what_the_tests_start_gets_its_signals(how: str) -> None:
    code = """
        import subprocess, sys
        from harness.kills import inherited_signals
        inherited_signals.reset()
        sys.exit(subprocess.run(["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]).returncode)
    """
    done = subprocess.run(
        deaf(how, "-c", textwrap.dedent(code)), env=with_our_modules(), capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert [int(line.split()[1], 16) for line in done.stdout.splitlines()] == [0, 0]


_FLOW = """
import sys
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK, agent_pid
root, store, work = sys.argv[1:]
checkpointer = Checkpointer.start(root, TASK, StoreSpec("local", store), Config.from_env(), uploader="process")
checkpointer.save(work)
checkpointer.flush(60)
for name in ("SigIgn", "SigBlk"):
    for line in open(f"/proc/{agent_pid(checkpointer)}/status"):
        if line.startswith(name):
            print(line.split()[1])
checkpointer.close(clean=True)
"""


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_an_agent_is_as_deaf_as_it_should_be_and_no_more(task: Task, how: str) -> None:
    (task.work / "weights").write_bytes(b"x" * 100_000)
    done = subprocess.run(
        deaf(how, "-c", _FLOW, task.root, task.store.root, str(task.work)), env=with_our_modules(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ignored, blocked = (int(text, 16) for text in done.stdout.split())
    # Ctrl-C and a closed terminal are the task's; Python ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's.
    assert ignored & ~bits(32, 33) == bits(signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
    assert bin(blocked).count("1") == 1, "the lease signal, which is waited for"
    assert task.committed_versions() == [0]


@pytest.mark.parametrize(("how", "number"), spread(["ignored", "blocked"], [signal.SIGINT, signal.SIGTERM]))
def test_a_watch_that_was_started_deaf_is_ended_by_signals(task: Task, how: str, number: signal.Signals) -> None:
    checkpointer = task.start()
    command = deaf(how, "-m", "async_ckpt.cli", "watch", str(task.work))
    with subprocess.Popen(command, env=task.environment(checkpointer), stdout=subprocess.PIPE, text=True) as watch:
        both = bits(signal.SIGINT, signal.SIGTERM)
        wait_until(lambda: masks(watch.pid)["SigBlk"] & both == both, "it waits for signals")
        watch.send_signal(number)
        output, _ = watch.communicate(timeout=60)
    assert output == "saved 0 checkpoints\n"
    assert watch.returncode == 0


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_a_task_that_cannot_hear_a_sigterm_says_so(task: Task, how: str) -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    if how == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        checkpointer = task.start()
        with log_lines.collected(said):
            termination = Termination(checkpointer, 30)
            termination.install()
            termination.uninstall()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, before)
    (line,) = said
    assert f"SIGTERM is {how}" in line

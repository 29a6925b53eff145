"""Whether the task does anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

from async_ckpt.agent.idleness import Idleness
from async_ckpt.config import IDLE_AFTER_S, IDLE_SHARE
from async_ckpt.system.processes import cpu_seconds


class Task:
    """Process 7, whose use of the CPU is looked at five times a second."""

    def __init__(self) -> None:
        self.now, self.used = 500.0, 0.0
        self.idleness = Idleness(self.tell)
        self.can_be_seen = True

    def tell(self, pid: int, ours: Collection[int]) -> float | None:
        assert (pid, list(ours)) == (7, [8])
        return self.used if self.can_be_seen else None

    def go_on(self, seconds: float, share: float) -> bool:
        until = self.now + seconds
        idle = False
        while self.now < until:
            self.now += 0.2
            self.used += 0.2 * share
            idle = self.idleness.look(self.now, [7], [8])
        return idle


def test_a_task_that_trains_is_not_idle() -> None:
    assert not Task().go_on(100, 1.0)


def test_a_task_that_waits_is_idle_after_a_while_and_only_as_long_as_it_does() -> None:
    task = Task()
    task.go_on(20, 1.0)
    assert not task.go_on(IDLE_AFTER_S - 1, 0)
    assert task.go_on(5, IDLE_SHARE / 2)
    assert not task.go_on(3, 1.0)


def test_what_cannot_be_seen_is_not_idle() -> None:
    task = Task()
    task.can_be_seen = False
    assert not task.go_on(100, 0)


def test_who_did_not_look_for_long_knows_nothing() -> None:
    task = Task()
    assert task.go_on(20, 0)
    task.now += 1000
    assert not task.go_on(1, 0)


def test_a_process_and_those_that_it_has_started_are_looked_at() -> None:
    code = "import sys, time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\n"
    waits = f"{code}print(flush=True); sys.stdin.read()"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {waits!r}])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", starts], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        whole, mine, without = (
            cpu_seconds(process.pid), cpu_seconds(os.getpid()), cpu_seconds(os.getpid(), [process.pid]),
        )  # fmt: skip
        if whole is not None:  # Some kernels do not tell whose child is whose.
            assert whole >= 0.1
            assert mine is not None
            assert without is not None
            assert without <= mine - 0.1
        assert process.stdin is not None
        process.stdin.close()
    assert cpu_seconds(process.pid) is None

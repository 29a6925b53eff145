"""How long is waited for what comes to nothing, and which process is taken for a hung one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt.config import HUNG_BUSY, HUNG_ON_DISK, Config
from async_ckpt.system import processes
from async_ckpt.system.backoff import Backoff
from async_ckpt.system.log import to_stderr, write_lines_with
from async_ckpt.task import watchdog
from async_ckpt.task.watchdog import Watchdog
from harness.tasks.task import is_alive, wait_until

_LIMIT_S = Config().hung_s


def test_pauses_grow_to_a_limit_and_end_when_it_goes_well() -> None:
    backoff = Backoff(2, 0.5, 3.0, calm_s=60.0)
    assert [backoff.failed(float(now)) for now in range(6)] == [0.0, 0.0, 0.5, 1.0, 2.0, 3.0]
    assert backoff.left_s(5.0) == 3.0
    assert backoff.left_s(7.0) == 1.0
    assert backoff.left_s(5.5, most_s=1.0) == 0.5
    assert backoff.left_s(9.0) == 0.0
    backoff.reset()
    assert backoff.failed(10.0) == 0.0


def test_what_failed_long_ago_does_not_count() -> None:
    backoff = Backoff(0, 1.0, 8.0, calm_s=60.0)
    assert [backoff.failed(now) for now in (0.0, 10.0, 71.0)] == [1.0, 2.0, 1.0]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line is that of an agent of ``tmp_path``, and which sleeps."""
    with _sleeper("agent", "3", "4", str(tmp_path)) as process:
        yield process


@contextlib.contextmanager
def _sleeper(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys, time; print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


class Seen:
    """What /proc is made to say of the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.turns = "S", 0
        monkeypatch.setattr(processes, "state_of", lambda pid: self.state)
        monkeypatch.setattr(processes, "turns_of", lambda pid: self.turns)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is said meanwhile."""
    said: list[str] = []
    write_lines_with(said.append)
    yield said
    write_lines_with(to_stderr)


def _look(watch: Watchdog, pid: int, seconds: float, step_s: float = 1.0) -> bool:
    return any(watch.look(pid, number * step_s) for number in range(int(seconds / step_s) + 1))


@pytest.mark.parametrize(("state", "limit_s"), [("S", _LIMIT_S), ("T", _LIMIT_S), ("D", _LIMIT_S * HUNG_ON_DISK)])
def test_an_agent_that_does_nothing_for_the_limit_is_ended(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], state: str,
    limit_s: float,
) -> None:  # fmt: skip
    Seen(monkeypatch).state = state
    watch = Watchdog(str(tmp_path), Config())
    assert not _look(watch, agent.pid, limit_s - 2)
    assert is_alive(agent.pid)
    watch = Watchdog(str(tmp_path), Config())
    assert _look(watch, agent.pid, limit_s + 1)
    assert agent.wait(10) == -signal.SIGKILL
    assert f"pid {agent.pid}" in lines[0]
    assert len(lines) == 1


def test_a_slow_agent_is_left_alone(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    watch = Watchdog(str(tmp_path), Config())
    for now in range(int(_LIMIT_S) * 3):  # It gets the CPU now and then.
        seen.turns = now // 5
        assert not watch.look(agent.pid, float(now))
    seen.state = "R"  # It waits for the CPU, which others have.
    for now in range(int(_LIMIT_S) * 3, int(_LIMIT_S) * 6):
        assert not watch.look(agent.pid, float(now))
    assert is_alive(agent.pid)


def test_one_that_is_busy_without_end_is_ended_late(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    seen = Seen(monkeypatch)
    watch = Watchdog(str(tmp_path), Config())
    now = 0
    while not watch.look(agent.pid, float(now)):
        seen.turns = now = now + 1
        assert now < 2 * _LIMIT_S * HUNG_BUSY
    assert now >= _LIMIT_S * HUNG_BUSY
    assert "busy" in lines[0]


def test_who_was_stopped_together_with_the_agent_does_not_judge_it(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept for an hour, or two processes that were stopped together."""
    Seen(monkeypatch)
    watch = Watchdog(str(tmp_path), Config())
    assert not watch.look(agent.pid, 0.0)
    assert not watch.look(agent.pid, 3600.0)
    watch.forgive(agent.pid)
    assert not watch.look(agent.pid, 7200.0)
    assert is_alive(agent.pid)


def test_in_a_hurry_it_is_ended_soon(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Seen(monkeypatch).state = "D"
    watch = Watchdog(str(tmp_path), Config())
    watch.hurry = True
    assert _look(watch, agent.pid, 4)


@pytest.mark.parametrize("words", ["agent 3 4 /elsewhere", "uploader 3 {}", "{}", "agent {} x"])
def test_nobody_else_who_has_its_number_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    with _sleeper(*words.format(tmp_path).split()) as process:
        Seen(monkeypatch)
        watch = Watchdog(str(tmp_path), Config())
        assert not _look(watch, process.pid, _LIMIT_S * 2)
        assert processes.end(process.pid, "agent", str(tmp_path), 1.0), "whoever was meant is gone"
        assert is_alive(process.pid)
        assert process.pid not in list(processes.find("agent", str(tmp_path)))


def test_one_that_cannot_die_is_of_no_use_and_its_lock_is_lost(
    agent: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    """It hangs in the kernel: what the real ``end`` says then."""
    Seen(monkeypatch)
    monkeypatch.setattr(watchdog, "end", lambda *_: False)
    watch = Watchdog(str(tmp_path), Config())
    assert _look(watch, agent.pid, _LIMIT_S + 1)
    assert "hangs in the kernel" in lines[0]
    assert watch.is_undead(agent.pid)
    assert watch.has_undead()
    assert not watch.is_lost(str(tmp_path / "agent.lock"))
    monkeypatch.setattr(watchdog, "opened_by", lambda pid: {str(tmp_path / "agent.lock")})
    assert watch.is_lost(str(tmp_path / "agent.lock"))
    agent.kill()
    agent.wait()
    assert not watch.has_undead()


def test_a_process_that_runs_has_turns_and_one_that_is_stopped_has_none() -> None:
    code = "import time\nwhile True: time.sleep(0.01)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        before = processes.turns_of(process.pid) or 0
        wait_until(lambda: (processes.turns_of(process.pid) or 0) > before, "it got the CPU")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: processes.state_of(process.pid) == "T", "it is stopped")
        assert processes.turns_of(process.pid) == processes.turns_of(process.pid)
        process.kill()
    assert processes.turns_of(process.pid) is None
    assert processes.state_of(process.pid) == "?"

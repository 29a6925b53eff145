"""Random lives of a task whose agents and uploaders die, are stopped, cannot be started, or are slow, in every phase.

Whatever happens, each save is in the store in the end, or was named with a reason, and each flush ends within its
limit.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from async_ckpt.errors import CheckpointError, FlushError
from async_ckpt.task.checkpointer import Checkpointer
from harness.tasks.task import Task, content, kill

#: Settings that make all of it happen in seconds: what they bound is bounded by them, whatever they are.
SETTINGS = {
    "hung_s": 1.5, "agent_patience_s": 1.5, "agent_pause_s": 0.5, "reply_timeout_s": 2, "progress_s": 1,
    "rescan_s": 0.2, "drain_timeout_s": 60,
}  # fmt: skip

#: How much longer than its limit a flush may take: an answer, and the question why each is not in the store.
GRACE_S = 8.0
#: The last flush, for which all is well again, has so long.
LAST_S = 90.0
#: A save takes a millisecond. Where the agent hangs it asks for a second, in vain; or somebody starts one meanwhile.
SAVE_S = 20.0

PHASES = ("start", "save", "flush", "drain")
STATES = ("dead", "stopped", "unstartable", "slow", "uploader dead", "uploader stopped")


@dataclass
class Outcome:
    """``happened``: how often which state met which phase; ``problems``: what is wrong."""

    saves: int = 0
    flushes: int = 0
    failed_flushes: int = 0
    attempts: int = 0
    named: int = 0
    slowest_save_s: float = 0.0
    happened: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Life:
    """One task from its first attempt to its last."""

    def __init__(self, seed: int, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.chance, self.outcome = random.Random(seed), Outcome()
        self.task, self._patch = Task(base, patch), patch
        self.task.set(**SETTINGS)
        self._gate = self.task.gate()
        self._timers: list[threading.Timer] = []
        self._executable = sys.executable
        self._saved: dict[tuple[int, int], int] = {}
        self._named: set[tuple[int, int]] = set()
        self._number = 0
        self._lines: list[str] = []
        self._checkpointer: Checkpointer | None = None
        self._attempt = -1

    def live(self) -> Outcome:
        """Let it happen, and judge."""
        try:
            for _ in range(self.chance.choice([1, 1, 2, 3])):
                self._next_attempt()
                for _ in range(self.chance.randint(2, 7)):
                    self._step()
            if not self._saved:
                self._save()
            self._end()
        except Exception as error:
            self.outcome.problems.append(f"{type(error).__name__}: {error}")
        finally:
            self._all_is_well()
            left = self.task.close()
        if left:
            self.outcome.problems.append(f"processes were left: {left}")
        return self.outcome

    # -- what the task does ----------------------------------------------------------------------------------------

    @property
    def _current(self) -> Checkpointer:
        assert self._checkpointer is not None
        return self._checkpointer

    def _next_attempt(self) -> None:
        if self._checkpointer is not None:
            if self.chance.random() < 0.5:
                self._trouble("drain")
            self._current.close(clean=False)
        if self.chance.random() < 0.3:
            self._trouble("start")
        self._attempt += 1
        self.outcome.attempts += 1
        self._checkpointer = self.task.start(attempt=self._attempt, report=self._lines.append)

    def _step(self) -> None:
        what = self.chance.random()
        if what < 0.5:
            if self.chance.random() < 0.4:
                self._trouble("save")
            self._save()
        elif what < 0.75:
            self._flush(self.chance.choice([0.0, 0.5, 2.0, 6.0]))
        else:
            self._trouble("save")

    def _save(self) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self._number += 1
            new = self.task.base / "new"
            new.write_bytes(content(self._number, self.chance.choice([1000, 300 << 10, 1 << 20])))
            os.rename(new, self.task.work / "weights")
            begun = time.monotonic()
            reference = self._current.save(self.task.work, metadata={"number": self._number})
            took_s = time.monotonic() - begun
            self.outcome.slowest_save_s = max(self.outcome.slowest_save_s, took_s)
            if took_s > SAVE_S:
                self.outcome.problems.append(f"a save took {took_s:.1f} s")
            self._saved[reference["attempt"], reference["version_id"]] = self._number
            self.outcome.saves += 1

    def _flush(self, limit_s: float) -> None:
        if self.chance.random() < 0.6:
            self._later(self.chance.uniform(0, limit_s), lambda: self._trouble("flush"))
        begun, ended_well = time.monotonic(), True
        self.outcome.flushes += 1
        try:
            self._current.flush(limit_s)
        except FlushError as error:
            ended_well = False
            self.outcome.failed_flushes += 1
            self._name(str(error))
        took_s = time.monotonic() - begun
        if took_s > limit_s + GRACE_S:
            self.outcome.problems.append(f"a flush with a limit of {limit_s:g} s took {took_s:.1f} s")
        if ended_well:
            self._judge(list(self._saved))

    def _end(self) -> None:
        """A last attempt, in which all is well again, brings in what is left."""
        if self.chance.random() < 0.5:
            self._trouble("drain")
            self._current.close(clean=False)
            self._all_is_well()
            self._next_attempt()
        self._all_is_well()
        self._flush_last()
        self._judge(list(self._saved))
        # One that was stopped after all was stored is missed by nobody, and would stay when nobody is left.
        for pid in self.task.processes():
            kill(pid, signal.SIGCONT)
        self._current.close(clean=True)

    def _flush_last(self) -> None:
        begun = time.monotonic()
        try:
            self._current.flush(LAST_S)
        except FlushError as error:
            self._name(str(error))
        if time.monotonic() - begun > LAST_S + GRACE_S:
            self.outcome.problems.append("the last flush did not end")

    # -- what happens to it ----------------------------------------------------------------------------------------

    def _trouble(self, phase: str) -> None:
        state = self.chance.choice(STATES)
        what = f"{state} / {phase}"
        self.outcome.happened[what] = self.outcome.happened.get(what, 0) + 1
        uploader = state.startswith("uploader")
        pids = list(self._pids("uploader" if uploader else "agent"))
        if state == "unstartable":
            self._make_unstartable()
            if pids and self.chance.random() < 0.8:
                kill(self.chance.choice(pids))
        elif state.endswith("dead"):
            for pid in pids:
                kill(pid)
        elif state.endswith("stopped"):
            for pid in pids:
                kill(pid, signal.SIGSTOP)
        elif self.chance.random() < 0.5:
            self._gate.hold("weights")
            self._later(self.chance.uniform(0.2, 3), lambda: self._gate.open("weights"))
        else:
            for pid in pids:
                kill(pid, signal.SIGSTOP)
                self._later(self.chance.uniform(0.1, 1.0), lambda pid=pid: kill(pid, signal.SIGCONT))

    def _make_unstartable(self) -> None:
        """For a while, or until the end, there is no interpreter, or one that dies at once."""
        false = self.task.base / "python"
        if self.chance.random() < 0.5:
            false.write_text("#!/bin/sh\nexit 1\n")
            false.chmod(0o755)
        sys.executable = str(false)
        if self.chance.random() < 0.7:
            self._later(self.chance.uniform(0.2, 3), self._make_startable)

    def _make_startable(self) -> None:
        sys.executable = self._executable

    def _pids(self, role: str) -> list[int]:
        """Agents, or uploaders, that live; none of them is this process."""
        found = []
        for pid in self.task.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if role.encode() in words:
                    found.append(pid)
        return found

    def _later(self, seconds: float, deed: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, deed)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _all_is_well(self) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._timers.clear()
        self._make_startable()
        self._gate.open_all()

    # -- judging ---------------------------------------------------------------------------------------------------

    def _name(self, text: str) -> None:
        """A flush has said that these are not in the store."""
        for found in re.finditer(r"\b(\d+)\.mfchckpt\.(\d+)\b", text):
            self._named.add((int(found[1]), int(found[2])))

    def _judge(self, saved: list[tuple[int, int]]) -> None:
        """All of these are in the store, each with what was saved, or are known to be lost, with a reason."""
        stored = set(self.task.committed())
        for key in saved:
            if key in stored:
                attempt, version = key
                path = self._stored_file(attempt, version)
                if path is None or not _is_content(path, self._saved[key]):
                    self.outcome.problems.append(f"{attempt}.{version} is committed, and not what was saved")
                continue
            state, why = self._state(key)
            if state == "FAILED" and why and (key in self._named or any(_id(key) in line for line in self._lines)):
                self.outcome.named += 1
            else:
                self.outcome.problems.append(f"{_id(key)} is not in the store after a flush: {state} {why}")

    def _state(self, key: tuple[int, int]) -> tuple[str, str]:
        try:
            return self._current.state(_id(key))
        except CheckpointError as error:
            return "?", str(error)

    def _stored_file(self, attempt: int, version: int) -> Path | None:
        folder = Path(self.task.store.root)
        return next(iter(folder.glob(f"mf.checkpoints/**/*.{attempt}.mfchckpt.{version}/weights")), None)


def _id(key: tuple[int, int]) -> str:
    return f"{key[0]}.mfchckpt.{key[1]}"


def _is_content(path: Path, number: int) -> bool:
    data = path.read_bytes()
    return data == content(number, len(data)) and len(data) in (1000, 300 << 10, 1 << 20)


def run(seed: int, base: Path, patch: pytest.MonkeyPatch) -> Outcome:
    """One life."""
    return Life(seed, base, patch).live()

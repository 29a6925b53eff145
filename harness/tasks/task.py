"""A task to save in, without Metaflow: spool, agent and local store under one directory; ways to kill and to look."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.config import ENV_ATTEMPT, ENV_PREFIX, ENV_SPOOL, Config
from async_ckpt.errors import CheckpointError
from async_ckpt.layout import TaskInfo
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.loader import load_from_first
from harness.common.process_mark import ProcessMark
from harness.files.writers import content
from harness.flow_runs.environments import with_our_modules

__all__ = [
    "TASK",
    "Gate",
    "Task",
    "agent_pid",
    "content",
    "is_alive",
    "journal_lines",
    "kill",
    "uploader_pid",
    "wait_until",
]

TASK = TaskInfo("Flow", "1", "train", "2", 0, layout.scope_of("user:tester"), layout.step_identifier("train"))


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until the condition is true, and return what it returned; fails after a time long for any machine."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain until {what}"
        time.sleep(0.005)
    return found


class Task:
    """One task attempt as the decorator sets it up; ``monkeypatch`` gives settings to its agent."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, *, spool_base: Path | None = None) -> None:
        self.base, self._monkeypatch = base, monkeypatch
        self.root = str((spool_base or base) / "spools")
        self.store = StoreSpec("local", str(base / "store"))
        self.work = (spool_base or base) / "work"
        self.info = TASK
        self._mark = ProcessMark()
        self._started: list[Checkpointer] = []
        self._gate: Gate | None = None
        for name, word in self._mark.environment.items():
            monkeypatch.setenv(name, word)
        for name in (ENV_SPOOL, ENV_ATTEMPT):
            monkeypatch.delenv(name, raising=False)
        self.work.mkdir(parents=True)
        self.set(log_stored=False)  # Tests look at what else is said.

    def move_to(self, folder: Path) -> Task:
        """Put the spool and the trainer's directory into another directory, e.g. on another file system."""
        self.root, self.work = str(folder / "spools"), folder / "work"
        self.work.mkdir(exist_ok=True)
        return self

    def set(self, **settings: object) -> None:
        """Settings for this process and the agents it starts from now on."""
        for name, value in settings.items():
            self._monkeypatch.setenv(ENV_PREFIX + name.upper(), str(value))

    def crash_at(self, point: str) -> Path:
        """The first process that reaches the point dies there; returns the file that then exists."""
        marker = self.base / f"crashed-{point.replace(':', '-')}"
        self.set(crash_at=f"{point}@{marker}")
        return marker

    def start(
        self, *, uploader: str = "process", attempt: int = 0, report: Callable[[str], None] = lambda line: None
    ) -> Checkpointer:
        """The checkpointer of the task's process. ``report`` gets what this process says from now on."""
        write_lines_with(report)
        self.info = replace(TASK, attempt=attempt)
        made = Checkpointer.start(self.root, self.info, self.store, Config.from_env(), uploader=uploader)
        self.take(made)
        return made

    def take(self, checkpointer: Checkpointer) -> None:
        """Close this one at the end as well."""
        self._started.append(checkpointer)

    def environment(self, checkpointer: Checkpointer) -> dict[str, str]:
        """What a subprocess of the task inherits."""
        attempt = str(checkpointer.task.attempt)
        return {**with_our_modules(), ENV_SPOOL: checkpointer.spool.directory, ENV_ATTEMPT: attempt}

    def gate(self) -> Gate:
        """A store whose uploads can be held; for agents that are started from now on."""
        self._gate = Gate(self.base / "gate", self._monkeypatch)
        return self._gate

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def spool(self) -> Spool:
        digest = layout.short_hash([TASK.pathspec, self.store.root], 16)
        return Spool.open(os.path.join(self.root, digest))

    def spool_exists(self) -> bool:
        digest = layout.short_hash([TASK.pathspec, self.store.root], 16)
        return os.path.exists(os.path.join(self.root, digest))

    def committed_versions(self) -> list[int]:
        """Versions whose metadata is in the store: what a reader of the store sees, ascending."""
        return [version for _, version in self.committed()]

    def committed(self) -> list[tuple[int, int]]:
        """(attempt, version) of all metadata in the task's folder."""
        folder = os.path.join(self.store.root, TASK.task_folder)
        with contextlib.suppress(FileNotFoundError):
            names = [layout.metadata_name_parts(TASK.task_folder, name) for name in os.listdir(folder)]
            return sorted((parts[0], parts[2]) for parts in names if parts)
        return []

    def commit_time_ns(self, version: int, *, attempt: int = 0, name: str = layout.DEFAULT_NAME) -> int:
        return os.stat(
            os.path.join(self.store.root, TASK.task_folder, f"{attempt}.{name}.{version}.metadata")
        ).st_mtime_ns

    def latest(self) -> dict[str, Any]:
        """What the store says is this task's newest."""
        found: dict[str, Any] = json.loads(Path(self.store.root, TASK.task_folder, "latest").read_text())
        return found

    def stored(self, reference: Any, path: str) -> Path:
        """One file of a checkpoint, as it lies in the store."""
        return Path(self.store.root, reference["key"], path)

    def read(self, reference: Any, into: Path) -> None:
        """Load a checkpoint from the store, as somebody else does."""
        load_from_first([self.store], dict(reference), str(into), Config.from_env())

    def processes(self) -> list[int]:
        """Living processes that this test started by exec, agents and uploaders included."""
        return self._mark.processes()

    # -- end -------------------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """Close every checkpointer; returns the command lines of processes that were left, and kills them."""
        if self._gate is not None:
            self._gate.open_all()
        for checkpointer in self._started:
            with contextlib.suppress(CheckpointError, OSError):
                checkpointer.close(clean=True)
        deadline = time.monotonic() + 15
        while (pids := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        left = []
        for pid in pids:
            with contextlib.suppress(OSError):
                left.append(f"{pid}: {command_line(pid)}")
                os.kill(pid, signal.SIGKILL)
        if self.spool_exists():  # What it has elsewhere, such as in memory, is not below the test's directory.
            self.spool.snapshots.remove_annexes(self.spool.directory)
        return left


def agent_pid(checkpointer: Checkpointer) -> int:
    """The process that guards the leases now, by its file: no question is asked, so it may be stopped or dead."""
    return int(Path(checkpointer.spool.path("agent.pid")).read_text())


def uploader_pid(checkpointer: Checkpointer) -> int:
    """The process that uploads now; waits until there is one."""
    return int(wait_until(lambda: checkpointer.status()["uploader_pid"], "there is an uploader"))


def journal_lines(checkpointer: Checkpointer) -> list[dict[str, Any]]:
    """What the journal says, line by line."""
    path = Path(checkpointer.spool.path("journal"))
    lines = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    return [json.loads(line[9:]) for line in lines if line.endswith(b"\n")]


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal; False where the process is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def close_and_kill(checkpointer: Checkpointer) -> None:
    """The attempt fails, and the agent dies before it can take away a spool in which nothing is left to do."""
    agent = agent_pid(checkpointer)
    kill(agent, signal.SIGSTOP)
    checkpointer.close(clean=False)
    kill(agent)


def is_alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


class Gate:
    """Holds the local store of uploaders started after it was made, through a ``sitecustomize`` of theirs.

    A call waits for as long as a file in the gate's folder is named by a part of the object's key.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._held = folder / "held"
        self._held.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(held=str(self._held)))
        monkeypatch.syspath_prepend(str(folder))

    def hold(self, part: str) -> None:
        """Hold objects with ``part`` in the last piece of their key, or in the one before."""
        (self._held / part).touch()

    def open(self, part: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._held / part).unlink()

    def open_all(self) -> None:
        for part in os.listdir(self._held):
            self.open(part)

    def waiting(self, part: str) -> bool:
        """Whether an upload stands before this part of the gate."""
        return (self._held.parent / f"waiting-{part}").exists()


_SITECUSTOMIZE = """
import os, time
if "uploader" in getattr(__import__("sys"), "orig_argv", []):
    from anyio import to_thread
    from async_ckpt.stores.local import LocalStore

    def held(key):
        for part in os.listdir({held!r}):
            if any(part in piece for piece in key.split("/")[-2:]):
                with open({held!r} + "/../waiting-" + part, "w"):
                    pass
                return True
        return False

    def behind(function):
        async def call(self, key, *rest):
            import anyio
            while held(key):
                await anyio.sleep(0.01)
            return await function(self, key, *rest)
        return call

    LocalStore.put_content = behind(LocalStore.put_content)
    LocalStore.put_bytes = behind(LocalStore.put_bytes)
    LocalStore.put_if = behind(LocalStore.put_if)
"""

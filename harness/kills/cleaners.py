"""Files that vanish from a spool, when they do, and what must be true then; for tests and ``stress/cleaners.py``."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from async_ckpt.errors import FlushError
from harness.tasks.repeated_saves import BIG, save
from harness.tasks.task import Task, agent_pid, close_and_kill, content, is_alive, wait_until


def remove(path: Path) -> None:
    """As ``rm -rf``, at once."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.removed")))
    else:
        path.unlink(missing_ok=True)


def _named(pattern: str) -> Callable[[Path], None]:
    def vanish(spool: Path) -> None:
        found = list(spool.glob(pattern))
        for path in found:
            remove(path)

    return vanish


def _files(spool: Path) -> None:
    """As ``find -type f -delete``."""
    for path in spool.rglob("*"):
        if path.is_file() and not path.is_dir():
            path.unlink()


def _sockets(spool: Path) -> None:
    for path in spool.iterdir():
        if path.is_socket():
            path.unlink()


def _content(spool: Path) -> None:
    for path in spool.iterdir():
        remove(path)


def _empty_folders(spool: Path) -> None:
    """As tmpreaper, which removes old directories when nothing is left in them."""
    for path in sorted((path for path in spool.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()


#: What vanishes.
KINDS: dict[str, Callable[[Path], None]] = {
    **{
        name: _named(name)
        for name in (
            "spool.json", "versions.*", "journal", "agent.sock", "agent-*.sock", "agent.pid", "agent.lock", "*.lock",
            "agent.log", "staging", "ready", "data", "annexes",
        )
    },
    "all sockets": _sockets,
    "all files": _files,
    "all locks and names": lambda spool: [_named(pattern)(spool) for pattern in ("*.lock", "agent*")] and None,
    "empty folders": _empty_folders,
    "the content of the spool": _content,
    "the spool": remove,
    "all spools": lambda spool: remove(spool.parent),
}  # fmt: skip

#: What takes the records away.
_RECORDS = ("ready", "all files", "the content of the spool", "the spool", "all spools")

PHASES = ("between saves", "during an upload", "before the flush", "before a subprocess saves", "between attempts")

_SAVE = """
import sys
from async_ckpt.task.checkpointer import Checkpointer
reference = Checkpointer.from_environment().save(sys.argv[1], metadata={"number": 1})
print(reference.id)
"""


class Scene:
    """A task that saves, and what it was told."""

    def __init__(self, task: Task, phase: str) -> None:
        self.task, self.said = task, list[str]()
        self.gate = task.gate()
        if phase in ("during an upload", "between attempts"):
            self.gate.hold("weights")
        self.checkpointer = task.start(report=self.said.append)
        self.saved = {save(self.checkpointer, task, 0).id: 0}
        if phase in ("between saves", "before a subprocess saves"):
            self.checkpointer.flush(60)
        elif phase == "before the flush":
            wait_until(self._is_known, "the agent has read its record, and can make it again")
        else:
            wait_until(lambda: self.gate.waiting("weights"), "it is uploaded")

    def _is_known(self) -> bool:
        status = self.checkpointer.status()
        return bool(status["pending"] or status["committed"])

    def save(self, number: int) -> None:
        self.saved[save(self.checkpointer, self.task, number).id] = number

    def save_in_subprocess(self) -> None:
        (self.task.work / "weights").write_bytes(content(1, BIG))
        done = subprocess.run(
            [sys.executable, "-c", _SAVE, str(self.task.work)], capture_output=True, text=True,
            env=self.task.environment(self.checkpointer), timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.saved[done.stdout.strip()] = 1

    def retry(self) -> None:
        """The task is killed with its agent, and runs again."""
        agent = agent_pid(self.checkpointer)
        close_and_kill(self.checkpointer)
        wait_until(lambda: not is_alive(agent), "the agent is gone")

    def assert_all_is_stored_or_named(self) -> set[str]:
        """Of what was saved: what the store has is right, and the rest is said to be missing, by name. Returns that."""
        missing: set[str] = set()
        try:
            self.checkpointer.flush(60)
        except FlushError as error:
            self.said.append(str(error))
            missing = {identity for identity in self.saved if identity in str(error)}
        missing |= {identity for identity in self.saved for line in self.said if f"{identity} of an earlier" in line}
        assert all("removed" in line for line in self.said if "not in the store" in line)
        assert not any("fuser" in line for line in self.said), "nobody has to end an agent"
        stored = {f"{attempt}.mfchckpt.{version}" for attempt, version in self.task.committed()}
        assert stored == self.saved.keys() - missing
        for reference in self.checkpointer.list():
            if reference["state"] != "COMMITTED":  # It is lost, and its record about to be removed.
                assert reference["state"] == "FAILED"
                continue
            path = self.task.stored(reference, "weights")
            assert path.read_bytes() == content(reference["metadata"]["number"], BIG)
        return missing


def run(task: Task, kind: str, phase: str) -> set[str]:
    """Have one kind of files vanish in one phase, and see what becomes of what was saved. Returns what is lost."""
    scene = Scene(task, phase)
    spool = Path(scene.checkpointer.spool.directory)
    if phase == "between attempts":
        scene.retry()
    KINDS[kind](spool)
    if phase == "between saves":
        scene.save(1)
    elif phase == "before a subprocess saves":
        scene.save_in_subprocess()
    elif phase == "between attempts":
        scene.checkpointer = task.start(attempt=1, report=scene.said.append)
        if kind in _RECORDS:  # Nobody is left who knows what there was.
            scene.saved.clear()
    scene.gate.open_all()
    missing = scene.assert_all_is_stored_or_named()
    if phase in ("between saves", "before a subprocess saves") or kind not in (*_RECORDS[1:], "data"):
        assert len(task.committed()) == len(scene.saved), "what could be made again is lost"
    return missing

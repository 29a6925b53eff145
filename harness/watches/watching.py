"""Watches of a test on a directory of its task: their lines, and what came to the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.system import log
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.watch import Watch, WatchOptions
from harness.tasks.task import Task

#: For how long a checkpoint must be quiet, where a test does not say otherwise.
QUICK_S = 0.05


class Watching:
    """Watches of one test on ``task.work / "out"``, their lines, and what came to the store."""

    def __init__(self, task: Task) -> None:
        self.task, self.out = task, task.work / "out"
        self.lines: list[str] = []
        self.watches: list[Watch] = []
        self.out.mkdir()

    def start(
        self,
        checkpointer: Checkpointer,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        **options: Any,
    ) -> Watch:
        log.write_lines_with(self.lines.append)  # From now on, as the task's own lines went elsewhere.
        watch = Watch(
            checkpointer, self.out, WatchOptions(**{"settle": QUICK_S, **options}), Config.from_env(),
            began_ns=checkpointer.spool.attempt_began_ns(), clock=clock, wall_clock_ns=wall_clock_ns,
        )  # fmt: skip
        self.watches.append(watch)
        return watch

    def heard(self, text: str) -> Callable[[], bool]:
        return lambda: any(text in line for line in self.lines)

    def write(self, path: str, **files: str) -> None:
        """Write a directory under another name and rename it into place."""
        target = self.out / path
        for name, text in files.items():
            (self.out / "tmp-new").mkdir(exist_ok=True)
            (self.out / "tmp-new" / name).write_text(text)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.out / "tmp-new", target)

    def end(self) -> None:
        for watch in self.watches:
            watch.stop(complete=False)


@pytest.fixture
def watching(task: Task) -> Iterator[Watching]:
    made = Watching(task)
    yield made
    made.end()
    log.write_lines_with(log.to_stderr)
    print("\n".join(made.lines))


def stored(task: Task, checkpointer: Checkpointer) -> list[tuple[str, dict[str, bytes]]]:
    """(path, its files) of everything that is committed, oldest first, read from the store's own files."""
    found = []
    for data in reversed(checkpointer.list()):
        assert data["state"] == "COMMITTED"
        root = Path(task.store.root, data["key"])
        files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        files.pop(".async_ckpt-manifest", None)
        found.append((data["metadata"]["path"], files))
    return found


def is_captured(watch: Watch, path: str) -> bool:
    """Whether the entry is captured as it stands."""
    entry = watch._recogniser.entries.get(path)
    return entry is not None and entry.captured is not None

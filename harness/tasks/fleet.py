"""Many subprocesses of one task save at once through its one socket, and all that they saved is looked at afterwards.

The writers are started, wait for each other, and then each saves a directory of its own: a file that is linked and one
that is packed, both rewritten in place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tasks.many_savers import BIG, SMALL, as_stored
from harness.tasks.task import Task

#: Numbers of one writer's saves begin at a multiple of this.
_STRIDE = 1000
_FLUSH_S = 600.0

_WRITER = """
import json, sys, time
from pathlib import Path
from async_ckpt.task.checkpointer import Checkpointer
from harness.files.writers import content
folder, first, count, big, small, every = Path(sys.argv[1]), *map(int, sys.argv[2:6]), float(sys.argv[6])
folder.mkdir()
checkpointer, saved = Checkpointer.from_environment(), []
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
for number in range(first, first + count):
    (folder / "weights").write_bytes(content(number, big))
    (folder / "step").write_bytes(content(number, small))
    # This is the training; the writers are not in step.
    time.sleep(max(began + (number - first + first / 1000 % 64 / 64) * every - time.monotonic(), 0) if every else 0)
    started = time.perf_counter()
    reference = checkpointer.save(folder, metadata={"number": number})
    saved.append([time.perf_counter() - started, dict(reference)])
print(json.dumps(saved), flush=True)
checkpointer.close(clean=False)
"""


class Writer:
    """One subprocess of the task."""

    def __init__(self, environment: Mapping[str, str], folder: Path, number: int, count: int, every_s: float) -> None:
        numbers = [number * _STRIDE, count, BIG, SMALL, every_s]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder), *map(str, numbers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "a writer has failed"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> list[tuple[float, dict[str, Any]]]:
        """Seconds in ``save()``, and the reference, of each save."""
        output, _ = self._process.communicate()
        assert self._process.returncode == 0, "a writer has failed"
        return [(seconds, reference) for seconds, reference in json.loads(output)]


@dataclass
class Outcome:
    """What came of one round; times in seconds."""

    saving_s: float = 0.0
    flush_s: float = 0.0
    blocked: list[float] = field(default_factory=list)
    missing: int = 0
    wrong: int = 0
    same_version: int = 0

    @property
    def bad(self) -> int:
        return self.missing + self.wrong + self.same_version


def run(task: Task, writers: int, saves: int, every_s: float = 0.0, *, uploader: str = "process") -> Outcome:
    """Let ``writers`` subprocesses of a task save ``saves`` times in all, and look at what is in the store."""
    checkpointer = task.start(uploader=uploader)
    environment, outcome = task.environment(checkpointer), Outcome()
    counts = [saves // writers + (number < saves % writers) for number in range(writers)]
    fleet = [
        Writer(environment, task.work / f"w{number}", number, count, every_s) for number, count in enumerate(counts)
    ]
    for writer in fleet:
        writer.ready()
    began = time.monotonic()
    for writer in fleet:
        writer.go()
    done = [saved for writer in fleet for saved in writer.result()]
    outcome.saving_s, began = time.monotonic() - began, time.monotonic()
    checkpointer.flush(_FLUSH_S)
    outcome.flush_s = time.monotonic() - began
    outcome.blocked = [seconds for seconds, _ in done]
    references = [reference for _, reference in done]
    versions = {reference["version_id"] for reference in references}
    committed = set(task.committed_versions())
    outcome.same_version = len(references) - len(versions)
    outcome.missing = saves - len(references) + len(versions - committed)
    outcome.wrong = sum(
        not as_stored(task.store.root, reference) for reference in references if reference["version_id"] in committed
    )
    return outcome

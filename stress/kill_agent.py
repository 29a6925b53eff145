"""Agents and uploaders are killed at random moments while 50 saves go through, round after round.

    python -m stress.kill_agent [--rounds 20] [--saves 50] [--kills 4] [--seed N]

Needs what the tests need. In each round a reader looks at the store all the time: it must see the oldest checkpoints
without a gap, and every one of them whole. Exit status 1 if one is missing, partial or out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from async_ckpt.checkpointer import Checkpointer
from async_ckpt.errors import CheckpointError
from tests.support.agents import Task, agent_pid, is_alive, kill
from tests.support.saving import as_stored, save_some

VICTIMS = ("agent", "uploader", "both")


@dataclass
class Figures:
    """What came of all rounds."""

    saves: int = 0
    committed: int = 0
    missing: int = 0
    partial: int = 0
    out_of_order: int = 0
    looks: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    slowest_save_s: float = 0.0


class Reader(threading.Thread):
    """Looks at the store until it is told to stop."""

    def __init__(self, task: Task, figures: Figures) -> None:
        super().__init__()
        self._task, self._figures, self.over = task, figures, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            versions = self._task.committed_versions()
            self._figures.looks += 1
            if versions != list(range(len(versions))):
                self._figures.out_of_order += 1


class Killer(threading.Thread):
    """Kills so often, at random moments of about the first two seconds."""

    def __init__(self, checkpointer: Checkpointer, random_: random.Random, kills: int, figures: Figures) -> None:
        super().__init__()
        self._checkpointer, self._figures = checkpointer, figures
        self._plan = [(random_.random() * 0.6, random_.choice(VICTIMS)) for _ in range(kills)]
        self.over = threading.Event()

    def run(self) -> None:
        for pause, victim in self._plan:
            if self.over.wait(pause):
                return
            if victim != "agent":
                with contextlib.suppress(CheckpointError):
                    worker = self._checkpointer.status()["worker_pid"]
                    if worker and kill(worker):
                        self._figures.kills["uploader"] += 1
            if victim != "uploader" and is_alive(pid := agent_pid(self._checkpointer)) and kill(pid):
                self._figures.kills["agent"] += 1


def run_round(base: Path, random_: random.Random, saves: int, kills: int, figures: Figures) -> None:
    with pytest.MonkeyPatch.context() as patch:
        task = Task(base, patch)
        checkpointer = task.start()
        reader, killer = Reader(task, figures), Killer(checkpointer, random_, kills, figures)
        reader.start()
        killer.start()
        saved = []
        for number in range(saves):
            started = time.monotonic()
            saved += save_some(checkpointer, task.work / "own", number, 1)
            figures.slowest_save_s = max(figures.slowest_save_s, time.monotonic() - started)
        killer.join()
        checkpointer.flush(150)
        reader.over.set()
        reader.join()
        figures.saves += saves
        committed = set(task.committed_versions())
        figures.committed += len(committed)
        figures.missing += sum(reference["version_id"] not in committed for reference in saved)
        figures.partial += sum(not as_stored(task.store.root, reference) for reference in saved)
        times = [task.commit_time_ns(version) for version in sorted(committed)]
        figures.out_of_order += (times != sorted(times)) + (task.latest()["version_id"] != saves - 1)
        if left := task.close():
            print(f"left behind: {left}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--saves", type=int, default=50)
    parser.add_argument("--kills", type=int, default=4, help="per round; six agent starts in 30 s are a crash loop")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    random_, figures = random.Random(options.seed), Figures()
    print(f"seed {options.seed}")
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="async-ckpt-kill-") as base:
            run_round(Path(base), random_, options.saves, options.kills, figures)
        print(
            f"round {number + 1:3}: saves {figures.saves}, committed {figures.committed}, "
            f"killed {figures.kills['agent']} agents and {figures.kills['uploader']} uploaders, "
            f"missing {figures.missing}, partial {figures.partial}, out of order {figures.out_of_order} "
            f"({figures.looks} looks), slowest write and save {figures.slowest_save_s:.3f} s",
            flush=True,
        )
    return bool(figures.missing or figures.partial or figures.out_of_order)


if __name__ == "__main__":
    sys.exit(main())

"""File systems × writers × strategies: whether what is committed is what was there at one moment of the save."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from async_ckpt.errors import FlushError, SnapshotError
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.filesystems import BELOW, CLONING, FILESYSTEMS, LAYERED, NFS, SECONDS
from harness.files.generations import WAYS, LocalWriter, Progress, RemoteWriter, judge
from harness.tasks.task import Task

#: All that the matrix is run on.
KINDS = (*FILESYSTEMS, SECONDS, *LAYERED, *BELOW, *NFS)
#: Who writes: a thread of the process that saves; another process; one that sees the files through another mount.
WRITERS = ("thread", "process", "other mount")
#: File systems on which the strategy ``hardlink`` is refused.
_NO_LINKS = (*LAYERED, *NFS)
#: The longest burst of a writer, in seconds.
_BURST_S = 0.02


class Cell(NamedTuple):
    """One combination."""

    way: str
    writer: str
    strategy: str


def cells(kind: str) -> Iterator[Cell]:
    """All combinations that there are on one file system."""
    for way in WAYS:
        for writer in WRITERS:
            # What is written into a mapping of one file system is not in the one below it before it is written back.
            if kind in BELOW and BELOW[kind] == "fuse" and writer == "other mount" and way.startswith("mmap"):
                continue
            yield Cell(way, writer, "auto")
        yield Cell(way, "process", "copy")
        if kind not in _NO_LINKS:
            yield Cell(way, "process", "hardlink")
        if kind in CLONING or kind == "overlay-xfs":
            yield Cell(way, "process", "reflink")


@dataclass
class Tally:
    """What came of the saves of one cell, or of several."""

    saves: int = 0
    committed: int = 0
    #: Saves that said that something writes to it all the time: the writer did not pause.
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    #: How the files got into the snapshots, as far as that was seen.
    how: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.saves, self.committed = self.saves + other.saves, self.committed + other.committed
        self.refused += other.refused
        self.wrong += other.wrong
        self.failed += other.failed
        self.how += other.how


class Trial:
    """One cell: a directory, its writer, and what was saved of it. Use as a context manager.

    Parameters
    ----------
    cell : Cell
        What to try.
    folder, seen : Path
        A new directory as the saver sees it, and as the writer does.
    base : Path
        For the writer's progress.
    """

    def __init__(self, cell: Cell, folder: Path, seen: Path, base: Path) -> None:
        self.cell, self._folder, self.tally = cell, folder, Tally()
        folder.mkdir(parents=True)
        progress = base / f"progress-{folder.name}"
        self._progress = Progress(progress)
        self._writer = (LocalWriter if cell.writer == "thread" else RemoteWriter)(cell.way, seen, progress)
        self._saved: list[tuple[Reference, int, int]] = []

    def __enter__(self) -> Trial:
        self._writer.begin(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._progress.close()
        shutil.rmtree(self._folder)

    def save(self, checkpointer: Checkpointer, random_: random.Random, *, during: bool) -> None:
        """Save, with the writer at rest until ``save()`` has returned, or at work since before it was called."""
        self._writer.wait()
        if during:
            self._writer.begin(random_.uniform(0, _BURST_S))
        complete = self._progress.complete
        self.tally.saves += 1
        try:
            reference = checkpointer.save(self._folder, snapshot=self.cell.strategy)
        except SnapshotError as error:
            self.tally.refused += during
            if not during:
                self.tally.failed.append(str(error))
        else:
            self._saved.append((reference, complete, self._progress.begun))
            record = checkpointer.spool.records.read(reference.id)
            if record is not None:
                self.tally.how += Counter(entry.how for entry in record.manifest.files)
        self._writer.begin(random_.uniform(0, _BURST_S))

    def finish(self, checkpointer: Checkpointer) -> None:
        """Compare what is in the store, once all is, and remove it there."""
        for reference, complete, begun in self._saved:
            state, why = checkpointer.state(reference.id)
            if state != "COMMITTED":
                self.tally.failed.append(f"{reference.id}: {state} {why}")
                continue
            self.tally.committed += 1
            stored = Path(checkpointer.spool.store.root, reference["key"])
            found = {path.name: path.read_bytes() for path in stored.iterdir()}
            if wrong := judge(found, self.cell.way, complete, begun):
                self.tally.wrong.append(f"{self.cell}, {reference.id}: {wrong}")
            shutil.rmtree(stored)
        self._saved.clear()


def run(
    task: Task, place: Path, other: Path, chosen: list[Cell], rounds: int, random_: random.Random
) -> dict[Cell, Tally]:
    """Save in each cell, ``rounds`` times; in every second round while the writer is at work.

    Parameters
    ----------
    place, other : Path
        A directory on the file system, and another path of the same.
    """
    checkpointer = task.move_to(place).start()
    with contextlib.ExitStack() as stack:
        trials = []
        for number, cell in enumerate(chosen):
            inside = Path("work", f"cell-{number}")
            seen = (other if cell.writer == "other mount" else place) / inside
            trials.append(stack.enter_context(Trial(cell, place / inside, seen, task.base)))
        for round_ in range(rounds):
            for trial in trials:
                trial.save(checkpointer, random_, during=bool(round_ % 2))
            with contextlib.suppress(FlushError):  # Which ones, and why, is asked of each.
                checkpointer.flush(150)
            for trial in trials:
                trial.finish(checkpointer)
    return {trial.cell: trial.tally for trial in trials}

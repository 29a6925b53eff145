"""A trainer that writes over what it has just saved, and the proof that no snapshot noticed."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from async_ckpt.errors import FlushError
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.files.writers import WAYS, LocalWriters, RemoteWriters
from harness.tasks.task import agent_pid, is_alive, kill

#: Agent and uploader: alive; the agent killed in the same moment; everything in threads of the task.
MODES = ("alive", "killed", "thread")


@dataclass
class Tally:
    """What came of the saves of one way of writing."""

    saves: int = 0
    committed: int = 0
    torn: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    #: Longest time in seconds that ``save()`` took, and that the write right after it took.
    longest_save_s: float = 0.0
    longest_write_s: float = 0.0

    def add(self, other: Tally) -> None:
        self.saves, self.committed = self.saves + other.saves, self.committed + other.committed
        self.torn += other.torn
        self.failed += other.failed
        self.longest_save_s = max(self.longest_save_s, other.longest_save_s)
        self.longest_write_s = max(self.longest_write_s, other.longest_write_s)


class Rewriting:
    """Saves one directory per way of writing, over and over, each rewritten as soon as ``save()`` returns.

    Use as a context manager; ``tally`` has a ``Tally`` per way after ``finish``.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        folder: Path,
        *,
        remote: bool,
        size: Callable[[], int],
        ways: tuple[str, ...] = WAYS,
    ) -> None:
        self._checkpointer, self._size = checkpointer, size
        self._writers = RemoteWriters() if remote else LocalWriters()
        self._paths = {way: folder / way / "weights" for way in ways}
        self._number = 0
        self._saved: list[tuple[str, Reference, dict[str, tuple[int, int]]]] = []
        self.tally = {way: Tally() for way in ways}
        self.kills = 0

    def __enter__(self) -> Rewriting:
        for way, path in self._paths.items():
            path.parent.mkdir()
            self._write(way)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.close()

    def _write(self, way: str) -> None:
        self._number += 1
        path = self._paths[way]
        self._writers.write(way, path, self._number, self._size())
        # A small file too: it is copied, not linked.
        path.with_name("step").write_text(str(self._number))

    def round(self, *, kill_at: str = "") -> None:
        """Save and rewrite each directory once; the agent is killed between the two for the way ``kill_at``."""
        for way, path in self._paths.items():
            tally = self.tally[way]
            expected = {item.name: digest(item) for item in path.parent.iterdir()}
            started = time.monotonic()
            reference = self._checkpointer.save(path.parent, metadata={"way": way})
            saved = time.monotonic()
            if way == kill_at and is_alive(pid := agent_pid(self._checkpointer)):
                kill(pid)
                self.kills += 1
            self._write(way)
            tally.longest_save_s = max(tally.longest_save_s, saved - started)
            tally.longest_write_s = max(tally.longest_write_s, time.monotonic() - saved)
            tally.saves += 1
            self._saved.append((way, reference, expected))

    def finish(self) -> None:
        """Wait for the store, and compare every checkpoint there with what was on disk at its ``save()``."""
        try:
            self._checkpointer.flush(150)
        except FlushError:
            pass  # Which ones, and why, is asked of each below.
        for way, reference, expected in self._saved:
            state, why = self._checkpointer.state(reference.id)
            if state != "COMMITTED":
                self.tally[way].failed.append(f"{reference.id}: {state} {why}")
                continue
            self.tally[way].committed += 1
            folder = Path(self._checkpointer.spool.store.root, reference["key"])
            found = {path.name: digest(path) for path in folder.iterdir()}
            if found != expected:
                self.tally[way].torn.append(f"{reference.id}: {found} instead of {expected}")
        self._saved.clear()


def digest(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    crc = size = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            crc, size = zlib.crc32(data, crc), size + len(data)
    return size, crc


def random_sizes(seed: int, low: int, high: int) -> Callable[[], int]:
    """Sizes in bytes, every order of magnitude as likely as the others, and seldom a multiple of a page."""
    random_ = random.Random(seed)
    return lambda: int(low * (high / low) ** random_.random()) + random_.randrange(4096)

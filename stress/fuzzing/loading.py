"""The second part of ``python -m stress.fuzz``: hostile checkpoints, loaded one after the other in a few processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.hostile.loads import Harmed, Hostile, Place

#: Bytes a loader may have of memory, and write to one file: an attack must not take the machine with it.
_MEMORY, _FILE = 4 << 30, 64 << 20

#: So many loads in one event loop.
_BATCH = 500

Say = Callable[[str], None]


@dataclass
class Loads:
    """What came of it; ``harm`` counts by kind and what happened, ``first`` says at which load of which seed."""

    loads: int = 0
    seconds: float = 0.0
    loaded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    harm: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, other: Loads) -> None:
        self.loads += other.loads
        self.loaded += other.loaded
        self.refused += other.refused
        self.harm += other.harm
        self.first = other.first | self.first

    @property
    def violations(self) -> list[str]:
        """In words, the most frequent first."""
        return [
            f"{kind}: {what} ({count} times; first at {self.first[kind, what]})"
            for (kind, what), count in self.harm.most_common()
        ]

    def row(self) -> dict[str, Any]:
        """A line of the report's table."""
        kinds = {kind: (self.loaded[kind], self.refused[kind]) for kind in sorted(self.loaded | self.refused)}
        return {
            "attack": f"{self.loads:,} loads",
            "seconds": f"{self.seconds:.0f}",
            "loaded, refused": "; ".join(
                f"{kind} {loaded:,}, {refused:,}" for kind, (loaded, refused) in kinds.items()
            ),
            "violations": self.harm.total(),
        }


def load_hostile(base: Path, seed: int, loads: int, processes: int, say: Say) -> Loads:
    """Load so many hostile checkpoints, in directories below ``base``."""
    context, total, begun = multiprocessing.get_context("fork"), Loads(), time.monotonic()
    running = []
    for number in range(processes):
        mine, theirs = context.Pipe(duplex=False)
        arguments = (base / str(number), f"{seed}.{number}", -(-loads // processes), theirs)
        process = context.Process(target=_load, args=arguments, daemon=True)
        process.start()
        theirs.close()
        running.append((process, mine))
    for process, pipe in running:
        while isinstance(came := pipe.recv(), str):
            say(came)
        total.add(came)
        process.join()
    total.seconds = time.monotonic() - begun
    return total


def _load(base: Path, seed: str, count: int, pipe: Connection) -> None:
    """The body of a process: sends lines of progress, and at last what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    came, place = Loads(), Place(base)
    hostile = Hostile(place, random.Random(seed))

    async def some() -> None:
        for _ in range(min(_BATCH, count - came.loads)):
            kind, load = hostile.next()
            loaded, harm = await place.attempt(load)
            (came.loaded if loaded else came.refused)[kind] += 1
            for what in harm:
                came.harm[kind, what] += 1
                came.first.setdefault((kind, what), f"{came.loads} of {seed}")
            came.loads += 1

    try:
        while came.loads < count:
            asyncio.run(some())
            if came.loads % (20 * _BATCH) == 0:
                pipe.send(f"{came.loads:,} loads, {came.harm.total()} violations (seed {seed})")
    except Harmed as error:
        came.harm["", str(error)] += 1
        came.first.setdefault(("", str(error)), f"{came.loads} of {seed}, where it ended")
    pipe.send(came)

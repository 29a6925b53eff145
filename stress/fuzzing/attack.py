"""Many intruders at one agent's socket, each a process with its own seed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from collections import Counter
from ctypes import c_int64
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from harness.hostile.client import Intruder, NoAnswer
from harness.hostile.frames import Descriptors, Frames

_FILES = ("weights", "step")
#: Ids of checkpoints under way are looked up anew after so many visits.
_LOOK_EVERY = 20


@dataclass
class Came:
    """What came of one intruder, or of all."""

    answers: int = 0
    visits: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def add(self, other: Came) -> None:
        self.answers += other.answers
        self.visits += other.visits
        self.complaints += other.complaints


def intrude(seed: str, count: int, sent: c_int64, pipe: Connection) -> None:
    """Send ``count`` frames to the agent of the spool that ``pipe`` names; ``sent`` tells how far it is, and ``pipe``
    gets a ``Came``. The body of a process.
    """
    spool, parent = pipe.recv(), os.getppid()
    random_ = random.Random(seed)
    frames, came = Frames(random_, files=_FILES), Came()
    with Descriptors() as fds:
        intruder = Intruder(os.path.join(spool, "agent.sock"), frames, fds, random_)
        try:
            while intruder.sent < count and os.getppid() == parent:
                if intruder.visits.total() % _LOOK_EVERY == 0:
                    frames.ids = [path.stem for path in Path(spool, "ready").glob("*.json")][:5]
                intruder.visit()
                sent.value = intruder.sent
        except (NoAnswer, OSError) as error:
            came.complaints.append(f"{type(error).__name__}: {error}")
        intruder.close()
    came.answers, came.visits = intruder.answers, intruder.visits
    pipe.send(came)


class Attack:
    """Intruders that share ``count`` frames. Made before there are threads and connections, as they are forked."""

    def __init__(self, seed: int, count: int, processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes, self._processes, self._sent = [], [], []
        for number in range(processes):
            mine, theirs = context.Pipe()
            sent = context.RawValue(c_int64, 0)
            arguments = (f"{seed}.{number}", -(-count // processes), sent, theirs)
            process = context.Process(target=intrude, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
            self._sent.append(sent)

    def begin(self, spool: str) -> None:
        """``spool``: the directory of the agent's spool."""
        for pipe in self._pipes:
            pipe.send(spool)

    @property
    def sent(self) -> int:
        """Frames, so far."""
        return sum(sent.value for sent in self._sent)

    def goes_on(self) -> bool:
        """Whether some intruder is not through."""
        return not all(pipe.poll() for pipe in self._pipes)

    def end(self) -> Came:
        """What came of it; those still at it are ended."""
        total = Came()
        until = time.monotonic() + 5
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            with contextlib.suppress(EOFError, ConnectionError):
                if pipe.poll(max(until - time.monotonic(), 0)):
                    total.add(pipe.recv())
            process.kill()
            process.join()
            pipe.close()
        return total

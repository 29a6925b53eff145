"""The program of a task that is killed, from outside: what it tells, its orders, its end, and what is left of it."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from async_ckpt.capture.walk import ANNEX_PREFIX
from harness.common.process_mark import ProcessMark
from harness.tasks.task import kill, wait_until


class Program(ABC):
    """A program that tells each step in JSON lines on its standard output, and takes orders on its standard input.

    Parameters
    ----------
    module : str
        Started with ``python -m``.
    spec : str
        For its command line.
    look : callable
        Called again and again while something is waited for.
    """

    def __init__(
        self, module: str, spec: str, environment: Mapping[str, str], look: Callable[[], None] = lambda: None
    ) -> None:
        self._look = look
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "task", spec],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        self.pid = self._process.pid
        #: All that saves here is gone.
        self.ended = False
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @abstractmethod
    def take(self, line: dict[str, Any]) -> None:
        """Take in what was told; called from another thread."""

    @abstractmethod
    def others(self) -> Iterable[int]:
        """The processes that it has started, as far as they are to be killed with it; 0: none."""

    def _listen(self, told: IO[bytes]) -> None:
        with told:
            for text in told:
                self.take(json.loads(text))
        self.ended = True

    def __exit__(self, *_: object) -> None:
        if not self.ended:
            for pid in filter(None, (self.pid, *self.others())):  # To kill 0 would be to kill this process as well.
                kill(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def wait_for(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Wait until the condition is true; False if all has ended, or the time is over, before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.ended or time.monotonic() >= deadline:
                return False
            self._look()
            time.sleep(0.004)
        return True

    def order(self, word: str) -> None:
        """Give an order; one that is dead takes none."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), f"{word}\n".encode())


def annexes_of(digest: str, state_dir: str) -> str:
    """The pattern of the annexes of the spool that is called ``digest``. What a run that was killed has left there, in
    a directory of the same name, is removed.
    """
    pattern = f"{state_dir}/{ANNEX_PREFIX}*/{digest}-*"
    for left in glob.glob(pattern):
        shutil.rmtree(left)
    return pattern


def left_at_the_end(mark: ProcessMark, patterns: Iterable[str], limit_s: float) -> list[str]:
    """What is there after so many seconds, of processes with a mark and of paths; such processes are killed then."""
    patterns = list(patterns)

    def left() -> list[str]:
        return [*map(str, mark.processes()), *(path for pattern in patterns for path in glob.glob(pattern))]

    deadline = time.monotonic() + limit_s
    wait_until(lambda: not left() or time.monotonic() >= deadline, "nothing is left", 2 * limit_s)
    rest = left()
    for pid in mark.processes() if rest else ():
        kill(pid)
    return rest

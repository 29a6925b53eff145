"""One attempt from outside: its process, what it tells, and its end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from harness.kills.ledger import Ledger
from stress.kills import saver
from stress.kills.saver import Spec

#: No event tells of a file or of another's process: looked for so often (seconds).
_LOOK_S = 0.004

#: A killed process is gone after so many seconds, on any machine.
_DEATH_S = 20.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["stress.kills.saver"])


class Attempt:
    """A running saver. ``agents_killed`` is for whoever kills: a launcher takes many starts for a crash loop."""

    def __init__(self, spec: Spec, ledger: Ledger) -> None:
        self.number, self.agents_killed = spec.attempt, 0
        self._ledger = ledger
        self._told, out = _processes.Pipe(duplex=False)
        orders, self._orders = _processes.Pipe(duplex=False)
        self._process = _processes.Process(target=saver.run, args=(spec, out, orders), daemon=True)
        self._process.start()
        out.close()
        orders.close()
        self.ended = False
        self.lines: set[str] = set()

    def until(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Listen until the condition is true; False if the saver ended or the time was over before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.ended or time.monotonic() >= deadline:
                return False
            self.listen(_LOOK_S)
        return True

    def hear(self, word: str, timeout_s: float) -> bool:
        """Listen until a kind of line was told; False as above."""
        return self.until(lambda: word in self.lines, timeout_s)

    def listen(self, timeout_s: float) -> None:
        """Take in what is told for so many seconds, or until the saver ends."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            ready = wait([self._told, self._process.sentinel], max(deadline - time.monotonic(), 0))
            self._take()
            if self._process.sentinel in ready:
                self._end()
            if time.monotonic() >= deadline:
                return

    def _take(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while self._told.poll():
                line = json.loads(self._told.recv_bytes())
                self.lines |= line.keys()
                self._ledger.take(line)

    def order(self, word: str) -> None:
        """Give the saver an order; one that is dead takes none."""
        with contextlib.suppress(OSError):
            self._orders.send_bytes(word.encode())

    @property
    def pid(self) -> int:
        """Of the saver."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def kill(self) -> None:
        """SIGKILL, and wait for the end; nothing where it has ended."""
        if not self.ended:
            self._process.kill()
            self.await_end()

    def await_end(self) -> None:
        """Of a saver that was killed."""
        self.listen(_DEATH_S)
        assert self.ended, "a killed process does not end"

    def _end(self) -> None:
        self._process.join(10)
        self._take()
        self.ended = True
        self._ledger.task_died(self.number)
        if self._process.exitcode not in (0, -signal.SIGKILL):
            self._ledger.errors.append(f"attempt {self.number} ended with {self._process.exitcode}")
        self._told.close()
        self._orders.close()

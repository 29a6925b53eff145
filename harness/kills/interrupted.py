"""A task that is interrupted at random moments: ``python -m harness.kills.interrupted BASE ATTEMPT SEED``.

It rewrites its files, saves, flushes and loads, round after round. Its handlers of signals do the same, raise, or end
it (``HANDLERS``), whatever they interrupt. ``interruptions.py`` sends the signals, and looks at what is in the store.

Whatever a save returned stands in BASE/saved: ``<id> <number>``. All files of a checkpoint have its number as content.
What is not as it must be is a line in BASE/wrong. Standard output has a byte for each round, and for each handler that
came to its end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn

import numpy as np

import async_ckpt
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.state.read import is_state, read_state
from async_ckpt.state.stager import state_saver
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.reference import Reference
from harness.kills import inherited_signals
from harness.tasks.task import TASK

#: Sizes in bytes of a checkpoint's files: one is packed, one linked.
SIZES = {"small": 100, "large": 40_000}

#: What is written when a handler has come to its end, which had interrupted this package, or something else; and what
#: before each round.
OURS, THEIRS, ROUND = b"o", b"t", b"r"

_OURS = os.path.dirname(async_ckpt.__file__)

#: Longer than anything takes here, in seconds; a writer that nobody lets go is let go by the kernel after 45.
LIMIT_S = 30.0


class Enough(Exception):
    """What a handler raises."""


class Interrupted:
    """The task's process."""

    def __init__(self, base: str, attempt: int, seed: int) -> None:
        self._base, self._random, self._number, self._ending = base, random.Random(seed), 0, False
        self._work = os.path.join(base, f"work-{attempt}")
        os.makedirs(self._work)
        self.checkpointer = Checkpointer.start(
            os.path.join(base, "spools"), replace(TASK, attempt=attempt),
            StoreSpec("local", os.path.join(base, "store")), Config(local_fsync=False, spot_notice_file=""),
            uploader="process",
        )  # fmt: skip
        self._handlers: dict[int, Callable[[], None]] = {
            signal.SIGUSR1: lambda: self._random.choice((self.save_beside, self.save_state))(),
            signal.SIGUSR2: self.flush,
            signal.SIGVTALRM: self.load,
            signal.SIGHUP: self._raise,
            signal.SIGALRM: self._save_and_raise,
            signal.SIGTERM: self._save_and_end,
        }
        for number in self._handlers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
            frame = frame.f_back
        try:
            self._handlers[number]()
        finally:
            os.write(1, OURS if frame is not None else THEIRS)

    # -- what it does ----------------------------------------------------------------------------------------------

    def _note(self, name: str, line: str) -> None:
        fd = os.open(os.path.join(self._base, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)

    def _write(self, folder: str, number: int) -> None:
        os.makedirs(folder, exist_ok=True)
        began = time.monotonic()
        for name, size in SIZES.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content(number, size))
        if time.monotonic() - began > LIMIT_S:
            self._note("wrong", f"a writer was held up for {time.monotonic() - began:.1f} s")

    def _save(self, folder: str, name: str, number: int) -> None:
        self._note_saved(self.checkpointer.save(folder, name=name), number)

    def _note_saved(self, saved: Reference, number: int) -> None:
        self._note("saved", f"{saved.attempt}.{saved.name}.{saved.version_id} {number}")

    def save_state(self) -> None:
        """A state, as a trainer has it; some in the background."""
        number = self._next()
        staging = self._random.choice(("sync", "async"))
        saved = state_saver(self.checkpointer).save(state_of(number), name=staging, staging=staging)
        saved.staged(LIMIT_S)
        if staging == "sync":  # The others are not admitted yet.
            self._note_saved(saved, number)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def save_in_place(self) -> None:
        """What every trainer does: over what it wrote before."""
        number = self._next()
        self._write(self._work, number)
        self._save(self._work, "main", number)

    def save_beside(self) -> None:
        """In a folder of its own, as what it interrupts may be half way through the other."""
        number = self._next()
        folder = os.path.join(self._work + "-beside", f"{number}-{threading.get_ident()}-{time.monotonic_ns()}")
        self._write(folder, number)
        self._save(folder, "beside", number)

    def flush(self) -> None:
        self.checkpointer.flush(LIMIT_S)

    def load(self) -> None:
        found = self.checkpointer.list(name="main")
        if found:
            folder = os.path.join(self._work + "-loaded", str(time.monotonic_ns()))
            os.makedirs(folder)
            self.checkpointer.load(self._random.choice(found[:3]), folder)
            if (why := why_torn(folder)) is not None:
                self._note("wrong", f"loaded into {folder}: {why}")

    def _raise(self) -> None:
        raise Enough

    def _save_and_raise(self) -> None:
        self.save_beside()
        raise Enough

    def _save_and_end(self) -> None:
        self._ending = True
        for number in (*self._handlers, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.save_beside()
        self._end()

    def _end(self) -> NoReturn:
        if self._random.random() < 0.5:
            os._exit(0)
        sys.exit(0)

    # -- its life --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until it is told to end."""
        doings = [self.save_in_place] * 6 + [self.save_state] * 4 + [self.flush, self.load]
        while True:
            with self._interruptible():
                while True:
                    os.write(1, ROUND)
                    self._random.choice(doings)()
                    self._check_handlers()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            yield
        except (Enough, KeyboardInterrupt):
            if self._ending:  # The handler that was to end it was interrupted itself.
                self._end()
        except CheckpointError as error:
            self._note("wrong", repr(error))

    def _check_handlers(self) -> None:
        expected: dict[int, Any] = {**dict.fromkeys(self._handlers, self._handle), signal.SIGINT: _INTERRUPT}
        for number, handler in expected.items():
            if signal.getsignal(number) != handler:
                self._note("wrong", f"the handler of {signal.Signals(number).name} is {signal.getsignal(number)}")


_INTERRUPT = signal.default_int_handler


def content(number: int, size: int) -> bytes:
    """What a file of a checkpoint holds."""
    return (b"%d\n" % number * size)[:size]


def state_of(number: int) -> dict[str, Any]:
    """What a state holds: a large array and small ones."""
    return {name: np.full(size, number) for name, size in SIZES.items()}


def why_torn(folder: str, number: int | None = None) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing. ``number``: which they must have, if it is known."""
    if is_state(folder):
        found = read_state(folder)
        number = int(found["small"][0]) if number is None else number
        wanted = state_of(number)
        is_same = found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
        return None if is_same else f"its state is not what was saved as {number}"
    if sorted(os.listdir(folder)) != sorted(SIZES):
        return f"it has {sorted(os.listdir(folder))}"
    for name, size in SIZES.items():
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        if number is None:
            number = int(data.split(b"\n", 1)[0])
        if data != content(number, size):
            return f"{name} is not what was saved as {number}"
    return None


if __name__ == "__main__":
    inherited_signals.reset()  # Started in a shell's background, it would never get some of them.
    faulthandler.enable()  # For who asks where it hangs: by a SIGABRT.
    Interrupted(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run()

"""A task that saves states in a loop, in threads and in a subprocess, until it is killed; a program.

It tells each step, as ``Ledger`` takes it, in JSON lines on its standard output: an async save is promised once it is
admitted. As soon as a save may no longer see it, its state is written over. Orders come as lines on its standard input.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from async_ckpt.config import ENV_ATTEMPT, ENV_SPOOL
from async_ckpt.errors import CheckpointError
from async_ckpt.ranks.who import Ranks
from async_ckpt.state.load import load_state
from async_ckpt.state.reference import STAGING
from async_ckpt.state.stager import state_saver
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from harness.kills import numbered_states, told
from harness.kills.told import BACKLOG, FAIL, FINISH, LIMIT_S, NUMBERS

_PAUSE_S = 0.05


@dataclass(frozen=True)
class Spec:
    """One attempt.

    Parameters
    ----------
    root, work : str
        Directory of the spools; directory to load into.
    kinds : mapping
        As ``numbered_states.KINDS``.
    threads : int
        That save side by side, in the task and in its subprocess, if it has one (``subprocess``).
    saves : int
        After so many a thread waits for orders.
    """

    root: str
    work: str
    store: Mapping[str, Any]
    attempt: int
    seed: int
    kinds: Mapping[str, int] = field(default_factory=lambda: numbered_states.KINDS)
    threads: int = 2
    subprocess: bool = True
    saves: int = 1 << 30

    def to_text(self) -> str:
        return json.dumps(asdict(self))


class _Trainer:
    def __init__(self, spec: Spec, first: int) -> None:
        self._spec, self._numbers = spec, itertools.count(first)
        self._over, self._telling, self._parent = threading.Event(), threading.Lock(), os.getppid()

    def say(self, **line: Any) -> None:
        with self._telling:
            os.write(1, json.dumps(line).encode() + b"\n")

    def complain(self, why: str) -> None:
        """Of what must not be. (Once its task is dead, a subprocess can save nothing.)"""
        if os.getppid() == self._parent:
            self.say(error=f"attempt {self._spec.attempt}: {why}")

    def save(self, checkpointer: Checkpointer) -> str:
        """Save until there is an order. Returns it; ``FAIL`` if whoever gives orders is gone."""
        threads = [
            threading.Thread(target=self._loop, args=(checkpointer, random.Random(self._spec.seed + thread), thread))
            for thread in range(self._spec.threads)
        ]
        for thread in threads:
            thread.start()
        order = os.read(0, 100).decode().strip() or FAIL
        self._over.set()
        for thread in threads:
            thread.join()
        return order

    def _loop(self, checkpointer: Checkpointer, random_: random.Random, thread: int) -> None:
        saver, name = state_saver(checkpointer), f"name{thread}"
        for _ in range(self._spec.saves):
            if self._over.wait(random_.random() * _PAUSE_S):
                return
            (kind,) = random_.choices(list(self._spec.kinds), list(self._spec.kinds.values()))
            number, staging = next(self._numbers), random_.choice(("sync", "async"))
            state, began = numbered_states.make(kind, number), time.monotonic()
            self.say(begin=[number, kind])
            try:
                handle = saver.save(state, staging=staging, name=name, metadata={"number": number, "kind": kind})
                handle.staged(LIMIT_S)
                numbered_states.overwrite(state)
                while handle.state == STAGING:
                    time.sleep(0.001)
                if handle.error:
                    self.say(error=f"save {number}, {staging}: {handle.error}")
                    continue
                self.say(saved=[handle.id, number, kind], seconds=[time.monotonic() - began, 0])
                if len(checkpointer.spool.records.ids()) > BACKLOG:
                    handle.wait(LIMIT_S)
            except Exception as error:  # Whatever it is: a thread that just ends would save nothing, and nobody knew.
                self.complain(f"save {number}, {staging}: {type(error).__name__}: {error}")
                return


def _task(spec: Spec) -> None:
    trainer = _Trainer(spec, spec.attempt * NUMBERS)
    checkpointer = told.start(spec.root, StoreSpec(**spec.store), spec.attempt, trainer.say)
    if spec.attempt:
        folder = os.path.join(spec.work, f"loaded-{spec.attempt}")

        def fault_of(kind: str, number: int) -> str:
            return numbered_states.fault_of(load_state(folder, lambda: Ranks(0, 1)), kind, number)

        told.resume(checkpointer, folder, fault_of, trainer.say)
    child = _start_child(spec, checkpointer) if spec.subprocess else None
    order = trainer.save(checkpointer)
    if child is not None:
        with contextlib.suppress(BrokenPipeError), child:  # It may have been killed.
            child.write(f"{order}\n".encode())
        with contextlib.suppress(ChildProcessError):
            os.wait()
    if order == FINISH:
        told.finish(checkpointer, trainer.say)
        os.read(0, 100)
    checkpointer.close(clean=order == FINISH)


def _start_child(spec: Spec, checkpointer: Checkpointer) -> IO[bytes]:
    """One that is forked, or begins anew; returns where its orders go. It ends with its task, if not before."""
    if random.Random(spec.seed).random() < 0.5:
        ours, theirs = os.pipe()
        if not os.fork():
            os.dup2(ours, 0)
            os.close(theirs)
            _subprocess(spec, checkpointer)
            os._exit(0)
        os.close(ours)
        return os.fdopen(theirs, "wb")
    environment = {ENV_SPOOL: checkpointer.spool.directory, ENV_ATTEMPT: str(spec.attempt)}
    child = subprocess.Popen(
        [sys.executable, "-m", "harness.kills.state_trainer", "subprocess", spec.to_text()],
        stdin=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip
    assert child.stdin is not None
    return child.stdin


def _subprocess(spec: Spec, checkpointer: Checkpointer | None = None) -> None:
    trainer = _Trainer(spec, spec.attempt * NUMBERS + NUMBERS // 2)
    trainer.say(child=os.getpid())
    write_lines_with(lambda line: trainer.say(report=line))
    try:
        checkpointer = checkpointer or Checkpointer.from_environment()
    except CheckpointError as error:
        trainer.complain(f"its subprocess cannot save: {error}")
        return
    trainer.save(checkpointer)
    checkpointer.close(clean=False)


if __name__ == "__main__":
    {"task": _task, "subprocess": _subprocess}[sys.argv[1]](Spec(**json.loads(sys.argv[2])))

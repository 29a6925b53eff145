"""The task of a round, in a process of its own: saves, and tells each step to whoever kills it.

It is forked from a process that has everything imported: a start costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# For the process that savers are forked from.
import anyio.from_thread  # noqa: F401

import async_ckpt.stores.local
import async_ckpt.stores.metaflow
import async_ckpt.stores.s3.store  # noqa: F401
from async_ckpt.errors import CheckpointError
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from harness.kills import told
from harness.kills.numbered_saves import KINDS, TAR, fault_of, write
from harness.kills.told import BACKLOG, FINISH, LIMIT_S, NUMBERS

_PAUSE_S = 0.06


@dataclass(frozen=True)
class Spec:
    """One attempt.

    Parameters
    ----------
    root, work : str
        Directory of the spools; directory of what is saved.
    seed : int
        Of all that is random in it.
    in_place : bool
        Whether files are rewritten in place.
    spoil : str
        A kind whose files are rewritten before anything else; empty: none.
    saves : int
        After so many it waits for orders.
    environment : mapping
        Settings for itself and its agent.
    """

    root: str
    work: str
    store: StoreSpec
    attempt: int
    seed: int
    in_place: bool
    spoil: str = ""
    saves: int = 1 << 30
    environment: Mapping[str, str] = field(default_factory=dict)


def run(spec: Spec, out: Connection, orders: Connection) -> None:
    """Entry point of the process."""
    os.environ.update(spec.environment)
    saver = _Saver(spec, out, orders)
    try:
        saver.run()
    except EOFError:
        pass  # Whoever gives the orders is gone.
    except CheckpointError as error:
        saver.say(error=f"attempt {spec.attempt}: {type(error).__name__}: {error}")


class _Saver:
    def __init__(self, spec: Spec, out: Connection, orders: Connection) -> None:
        self._spec, self._out, self._orders = spec, out, orders
        self._random = random.Random(spec.seed)
        self._work = Path(spec.work)

    def say(self, **line: Any) -> None:
        self._out.send_bytes(json.dumps(line).encode())

    def run(self) -> None:
        spec = self._spec
        if spec.spoil:
            number = spec.attempt * NUMBERS + NUMBERS - 1
            write(self._work / spec.spoil, spec.spoil, number, in_place=True)
        checkpointer = told.start(spec.root, spec.store, spec.attempt, self.say)
        if spec.attempt:
            self._resume(checkpointer)
        for index in range(spec.saves):
            if self._orders.poll(self._random.random() * _PAUSE_S):
                break
            self._save(checkpointer, spec.attempt * NUMBERS + index)
        order = self._orders.recv_bytes().decode()
        if order == FINISH:
            told.finish(checkpointer, self.say)
            self._orders.recv_bytes()
        elif self._random.random() < 0.5:
            told.flush(checkpointer, self.say)
        checkpointer.close(clean=order == FINISH)

    def _resume(self, checkpointer: Checkpointer) -> None:
        folder = self._work / f"loaded-{self._spec.attempt}"
        kind = told.resume(checkpointer, str(folder), lambda *what: fault_of(folder, *what), self.say)
        if kind and self._spec.in_place:  # What was loaded may be a link to what is still to be uploaded.
            write(folder, kind, self._spec.attempt * NUMBERS + NUMBERS - 2, in_place=True)

    def _save(self, checkpointer: Checkpointer, number: int) -> None:
        (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
        folder = self._work / kind
        self.say(begin=[number, kind])
        began = time.monotonic()
        write(folder, kind, number, in_place=self._spec.in_place)
        wrote, began = time.monotonic() - began, time.monotonic()
        try:
            reference = checkpointer.save(
                folder, metadata={"number": number, "kind": kind}, storage_format="tar" if kind == TAR else "files"
            )
            self.say(saved=[reference.id, number, kind], seconds=[time.monotonic() - began, wrote])
            if len(checkpointer.spool.records.ids()) > BACKLOG:
                reference.wait(LIMIT_S)
        except CheckpointError as error:
            self.say(error=f"attempt {self._spec.attempt}, save {number}: {type(error).__name__}: {error}")

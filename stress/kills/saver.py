"""The task of a round, in a process of its own: saves, and tells each step to whoever kills it.

It is forked from a process that has everything imported: a start costs milliseconds. What it tells are JSON objects
through a pipe, each written at once, so that none is lost or torn when it is killed:

- ``begin``: ``[number, kind]``, before a save;
- ``saved``: ``[id, number, kind]`` after ``save()`` returned: what was promised; ``seconds``: ``[save, write before]``;
- ``started``; ``resumed``: ``[attempt, version, fault]`` of what the attempt began with, or None;
- ``report``: lines for people; ``error``: what must not happen; ``flush``: the error of the flush, or an empty text;
- ``listed``: ids of what the product says is committed; after it, it waits for its last order.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# For the process that savers are forked from.
import anyio.from_thread  # noqa: F401

import async_ckpt.stores.local
import async_ckpt.stores.metaflow
import async_ckpt.stores.s3.store  # noqa: F401
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.spool.journal import COMMITTED
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from harness.kills.numbered_saves import KINDS, TAR, fault_of, write
from harness.tasks.task import TASK

#: Orders: end as a step that failed; end as one that is done, first with a flush, then for good.
FAIL, FINISH, CLOSE = b"fail", b"finish", b"close"

#: More than so many that are not in the store: wait for the last.
_BACKLOG = 6
_PAUSE_S = 0.06
_LIMIT_S = 120.0

#: Numbers of an attempt's saves begin at so many times its own.
NUMBERS = 100_000


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
        write_lines_with(lambda line: self.say(report=line))
        checkpointer = Checkpointer.start(
            spec.root, replace(TASK, attempt=spec.attempt), spec.store, Config.from_env(), uploader="process"
        )
        self.say(started=True)
        if spec.attempt:
            self._resume(checkpointer)
        for index in range(spec.saves):
            if self._orders.poll(self._random.random() * _PAUSE_S):
                break
            self._save(checkpointer, spec.attempt * NUMBERS + index)
        order = self._orders.recv_bytes()
        if order == FINISH:
            self._finish(checkpointer)
        elif self._random.random() < 0.5:
            self._flush(checkpointer)
        checkpointer.close(clean=order == FINISH)

    def _resume(self, checkpointer: Checkpointer) -> None:
        folder = self._work / f"loaded-{self._spec.attempt}"
        found = checkpointer.load_newest("fresh", str(folder))
        if found is None:
            self.say(resumed=None)
            return
        kind, number = found["metadata"]["kind"], found["metadata"]["number"]
        self.say(resumed=[found["attempt"], found["version_id"], fault_of(folder, kind, number)])
        if self._spec.in_place:  # What was loaded may be a link to what is still to be uploaded.
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
            if len(checkpointer.spool.records.ids()) > _BACKLOG:
                reference.wait(_LIMIT_S)
        except CheckpointError as error:
            self.say(error=f"attempt {self._spec.attempt}, save {number}: {type(error).__name__}: {error}")

    def _flush(self, checkpointer: Checkpointer) -> None:
        why = ""
        try:
            checkpointer.flush(_LIMIT_S)
        except CheckpointError as error:
            why = str(error)
        self.say(flush=why)

    def _finish(self, checkpointer: Checkpointer) -> None:
        self._flush(checkpointer)
        entries = [entry for entry in checkpointer.list() if entry["state"] == COMMITTED]
        self.say(listed=[f"{entry['attempt']}.{entry['name']}.{entry['version_id']}" for entry in entries])
        self._orders.recv_bytes()

"""A task that starts ranks which save their states together, and starts them again when one has died; two programs.

It does what torchrun does, without torch: all ranks of a start make each step together; if one dies, the others are
ended, and all begin again. It and its ranks tell each step in JSON lines on its standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from async_ckpt.config import ENV_ATTEMPT, ENV_PREFIX, ENV_SPOOL
from async_ckpt.errors import CheckpointError
from async_ckpt.ranks.who import Ranks
from async_ckpt.state.load import load_state
from async_ckpt.state.reference import STAGING
from async_ckpt.state.stager import state_saver
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer
from harness.kills import numbered_states, told

#: The number of an attempt's first save, and of the first one of a start of its ranks.
ATTEMPT, START = 1_000_000, 10_000

#: So long the others go on at most, as torchrun looks every so often (seconds).
_NOTICED_S = 0.1

_LOOK_S = 0.01


@dataclass(frozen=True)
class Spec:
    """One attempt.

    Parameters
    ----------
    root : str
        Directory of the spools.
    crash_at, markers : str
        A point, and files: a rank dies there if ``<markers>-<rank>`` is missing. Empty: nowhere.
    restarts : int
        How often the ranks are started again.
    saves : int
        After so many the ranks are done.
    """

    root: str
    store: Mapping[str, Any]
    attempt: int
    seed: int
    ranks: int
    crash_at: str = ""
    markers: str = ""
    restarts: int = 2
    saves: int = 1 << 30

    def to_text(self) -> str:
        return json.dumps(asdict(self))


def content(number: int, rank: int) -> int:
    """The number of a rank's state: no two have the same."""
    return number * 16 + rank


def _say(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


# -- the task ----------------------------------------------------------------------------------------------------------


def _task(spec: Spec) -> None:
    checkpointer = told.start(spec.root, StoreSpec(**spec.store), spec.attempt, _say)
    checkpointer.resumption.begin(checkpointer.spool.new_work_directory(), "fresh", "all")
    checkpointer.resumption.load_once()
    done = False
    for start in range(spec.restarts + 1):
        with _ranks(spec, checkpointer, start) as ranks:
            done = ranks.run()
            if ranks.ordered:
                break
        if done:
            break
    try:
        checkpointer.flush(told.LIMIT_S, gather_s=None if done else checkpointer.config.collective_grace_s)
        _say(flush="")
    except CheckpointError as error:
        _say(flush=str(error))
    checkpointer.close(clean=done)


@contextlib.contextmanager
def _ranks(spec: Spec, checkpointer: Checkpointer, start: int) -> Iterator[_Ranks]:
    begun = _Ranks(spec, checkpointer, start)
    try:
        yield begun
    finally:
        begun.end()


class _Ranks:
    """Those of one start."""

    def __init__(self, spec: Spec, checkpointer: Checkpointer, start: int) -> None:
        self.ordered = False
        self._ready, ready = os.pipe()
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(spec.ranks):
            own = {
                ENV_SPOOL: checkpointer.spool.directory, ENV_ATTEMPT: str(spec.attempt), "RANK": str(rank),
                "WORLD_SIZE": str(spec.ranks), "TORCHELASTIC_RESTART_COUNT": str(start),
            }  # fmt: skip
            if spec.crash_at:
                own[f"{ENV_PREFIX}CRASH_AT"] = f"{spec.crash_at}@{spec.markers}-{rank}"
            command = [
                sys.executable,
                "-m",
                "harness.kills.state_ranks",
                "rank",
                spec.to_text(),
                str(start),
                str(ready),
            ]
            environment = {**os.environ, **own}
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, pass_fds=[ready]))
        os.close(ready)
        _say(start=start, pids=[process.pid for process in self._processes])

    def run(self) -> bool:
        """Lead them from step to step. False: one has died, or this task is to fail."""
        ready = 0
        while True:
            codes = [process.poll() for process in self._processes]
            if any(codes):
                time.sleep(random.uniform(0, _NOTICED_S))
                return False
            if codes == [0] * len(codes):
                return True
            can_read, _, _ = select.select([self._ready, 0], [], [], _LOOK_S)
            if 0 in can_read:
                self.ordered = True
                return False
            ready += len(os.read(self._ready, len(codes))) if self._ready in can_read else 0
            if ready == len(codes):
                ready = 0
                for process in self._processes:
                    assert process.stdin is not None
                    with contextlib.suppress(BrokenPipeError):
                        os.write(process.stdin.fileno(), b"\n")

    def end(self) -> None:
        os.close(self._ready)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


# -- a rank ------------------------------------------------------------------------------------------------------------


def _rank(spec: Spec, start: int, ready: int) -> None:
    task, rank = os.getppid(), int(os.environ["RANK"])
    checkpointer = None
    try:
        checkpointer = Checkpointer.from_environment()
        _resume(checkpointer, spec, start, rank)
        _save(checkpointer, spec, start, rank, ready)
    except Exception as error:  # Whatever it is: nobody else would tell.
        if os.getppid() == task:  # Who has outlived its task can neither load nor save.
            _say(error=f"rank {rank} of {spec.attempt}.{start}: {type(error).__name__}: {error}")
        _die()
    checkpointer.close(clean=False)


def _die() -> NoReturn:
    os._exit(1)


def _resume(checkpointer: Checkpointer, spec: Spec, start: int, rank: int) -> None:
    path, found = checkpointer.resumption.path(), checkpointer.resumption.info()
    line: dict[str, Any] = {"start": start, "resumed": rank, "from": None, "fault": ""}
    if path is not None and found is not None:
        number, kind = found["metadata"]["number"], found["metadata"]["kind"]
        states = {other: load_state(path, lambda other=other: Ranks(other, spec.ranks)) for other in range(spec.ranks)}
        faults = (numbered_states.fault_of(state, kind, content(number, other)) for other, state in states.items())
        line |= {"from": [found["attempt"], found["version_id"]], "fault": next(filter(None, faults), "")}
    _say(**line)


def _save(checkpointer: Checkpointer, spec: Spec, start: int, rank: int, ready: int) -> None:
    saver, own = state_saver(checkpointer), random.Random(f"{spec.seed} {start} {rank}")
    of_all = random.Random(f"{spec.seed} {start}")
    for number in range(first := spec.attempt * ATTEMPT + start * START, first + spec.saves):
        os.write(ready, b".")
        if not os.read(0, 1):
            _die()  # The task is gone.
        (kind,) = of_all.choices(list(numbered_states.KINDS), list(numbered_states.KINDS.values()))
        state, staging = numbered_states.make(kind, content(number, rank)), own.choice(("sync", "async"))
        _say(begin=number, kind=kind)
        metadata = {"number": number, "kind": kind}
        handle = saver.save(state, staging=staging, metadata=metadata, collective=True)
        handle.staged(told.LIMIT_S)
        numbered_states.overwrite(state)
        while handle.state == STAGING:
            time.sleep(0.001)
        if handle.error:
            raise CheckpointError(handle.error)
        _say(saved=[handle["attempt"], handle["name"], handle["version_id"]], rank=rank, number=number, kind=kind)


if __name__ == "__main__":
    given = Spec(**json.loads(sys.argv[2]))
    if sys.argv[1] == "task":
        _task(given)
    else:
        _rank(given, int(sys.argv[3]), int(sys.argv[4]))

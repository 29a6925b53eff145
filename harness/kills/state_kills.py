"""One round: a task that saves states is killed attempt after attempt; the last one ends well, and all is compared."""

from __future__ import annotations

import contextlib
import glob
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from async_ckpt import layout
from async_ckpt.config import ENV_PREFIX
from async_ckpt.stores.base import StoreSpec
from harness.common.process_mark import ProcessMark
from harness.flow_runs.environments import with_our_modules
from harness.kills import numbered_states
from harness.kills.from_outside import Program, annexes_of, left_at_the_end
from harness.kills.ledger import Ledger
from harness.kills.spool_processes import AGENT, TASK, UPLOADER, agent_of, uploader_of
from harness.kills.state_trainer import Spec
from harness.kills.store_reader import Reader
from harness.kills.sums import Sums
from harness.kills.told import CLOSE, FAIL, FINISH
from harness.tasks import task
from harness.tasks.task import kill

SUBPROCESS = "subprocess"

#: Who is killed together, by what a round calls its victim.
VICTIMS: dict[str, tuple[str, ...]] = {
    "task": (TASK,), "subprocess": (SUBPROCESS,), "agent": (AGENT,), "uploader": (UPLOADER,),
    "task and agent": (TASK, AGENT), "all at once": (TASK, SUBPROCESS, AGENT, UPLOADER),
}  # fmt: skip

#: When: at random, or where whoever saves a state comes by a point.
RANDOM = "at random"
MOMENTS = (RANDOM, "state:copied", "state:linked", "state:admitted")

#: Limits (seconds): of a moment that may not come, of what must come, of a flush.
_MOMENT_S, _EVENT_S, _FLUSH_S = 5.0, 60.0, 150.0


@dataclass
class Found(Sums):
    """What came of a round. ``most_bytes``: of memory that was staged in at one time; ``slowest_start_s``: until all
    ranks went on that were started again; ``wrong``: a sentence for each thing that must not be.
    """

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    promised: int = 0
    committed: int = 0
    most_bytes: int = 0
    slowest_start_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class StateRound:
    """See the module's docstring.

    Parameters
    ----------
    base : Path
        An empty directory for all of it.
    objects : Path
        Where the store's objects lie as files.
    victim, moment : str
        A key of ``VICTIMS``, one of ``MOMENTS``. Whoever saves a state, the task or its subprocess, dies at a point,
        and then the victims.
    state_dir : str
        Where states are staged: in memory, if it is a file system in memory.
    kills : int
        So many times, each in an attempt of its own if the task dies.
    spec : mapping
        Fields of ``Spec``.
    """

    def __init__(
        self, base: Path, store: StoreSpec, objects: Path, victim: str, moment: str, seed: int,
        *, state_dir: str = "/dev/shm", kills: int = 4, spec: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.base, self._store, self.objects = base, store, objects
        self._victims, self._moment, self._kills = VICTIMS[victim], moment, kills
        self._random, self._state_dir, self._spec = random.Random(seed), state_dir, spec or {}
        self.found, self._ledger, self._mark, self._strikes = Found(rounds=1), Ledger(), ProcessMark(), 0
        digest = layout.short_hash([task.TASK.pathspec, store.root], 16)
        self._spool = base / "spools" / digest
        self._annexes = annexes_of(digest, state_dir)
        self._reader = Reader(objects, self._spool, self._ledger, numbered_states.fault_in_store)
        self._marker = base / "crashed"

    def run(self) -> Found:
        """Kill, let a last attempt finish, compare."""
        self._reader.start()
        number = 0
        while self._strikes < self._kills:
            self._one_attempt(number)
            number += 1
        self._marker.touch()
        self._last_attempt(number)
        self._judge()
        return self.found

    # -- attempts --------------------------------------------------------------------------------------------------

    def _attempt(self, number: int, **fields: Any) -> _Attempt:
        spec = Spec(
            str(self.base / "spools"), str(self.base), asdict(self._store), number, self._random.getrandbits(32),
            **{**self._spec, **fields},
        )  # fmt: skip
        environment = {**with_our_modules(), **self._mark.environment, "OMP_NUM_THREADS": "1"}
        environment[f"{ENV_PREFIX}STATE_DIR"] = self._state_dir
        if self._moment != RANDOM:
            environment[f"{ENV_PREFIX}CRASH_AT"] = f"{self._moment}@{self._marker}"
        return _Attempt(spec, environment, self._ledger, self._look)

    def _one_attempt(self, number: int) -> None:
        self._marker.touch()
        attempt = self._attempt(number)
        with attempt:
            if not attempt.wait_for(lambda: attempt.saves >= 2 and attempt.child, _EVENT_S):
                self._ledger.errors.append(f"attempt {number} saves nothing")
            while not attempt.ended and self._strikes < self._kills:
                self._strike(attempt)
            if not attempt.ended:
                attempt.order(FAIL)
                if not attempt.wait_for(lambda: attempt.ended, _FLUSH_S):
                    self._ledger.errors.append(f"attempt {number} does not end")
        self._ledger.task_died(number)

    def _last_attempt(self, number: int) -> None:
        with self._attempt(number, saves=2) as attempt:
            attempt.wait_for(lambda: attempt.saves >= 2, _EVENT_S)
            attempt.order(FINISH)
            if not attempt.wait_for(lambda: self._ledger.listed is not None, _FLUSH_S):
                self._ledger.errors.append("the last attempt does not finish")
            self._reader.over.set()
            self._reader.join()
            self._reader.look()
            for name in ("journal", "agent.log"):  # To be looked at, if something is wrong.
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(self._spool / name, self.base)
            attempt.order(CLOSE)
            if not attempt.wait_for(lambda: attempt.ended, _EVENT_S):
                self._ledger.errors.append("the last attempt does not end")

    def _look(self) -> None:
        """See how much memory is staged in. (A file with two names counts once.)"""
        sizes = {}
        for folder, _, names in (entry for annex in glob.glob(self._annexes) for entry in os.walk(annex)):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(os.path.join(folder, name))
                    sizes[status.st_ino] = status.st_blocks * 512
        self.found.most_bytes = max(self.found.most_bytes, sum(sizes.values()))

    # -- killing ---------------------------------------------------------------------------------------------------

    def _strike(self, attempt: _Attempt) -> None:
        if self._moment == RANDOM:
            saves = attempt.begun
            attempt.wait_for(lambda: attempt.begun > saves, _MOMENT_S)
            attempt.wait_for(lambda: False, self._random.random() * self._random.choice((0.01, 0.2)))
        else:
            self._marker.unlink(missing_ok=True)
            attempt.wait_for(self._marker.exists, _MOMENT_S)
            self._marker.touch()
        pids = {
            TASK: attempt.pid, SUBPROCESS: attempt.child or 0,
            AGENT: agent_of(self._spool) or 0, UPLOADER: uploader_of(self._spool) or 0,
        }  # fmt: skip
        victims = list(self._victims)
        self._random.shuffle(victims)
        for victim in victims:
            if pids[victim] and task.is_alive(pids[victim]) and kill(pids[victim]):
                self.found.kills[f"{victim}, {self._moment}"] += 1
        self._strikes += 1
        if TASK in victims or not task.is_alive(attempt.pid):
            attempt.wait_for(lambda: attempt.ended, _EVENT_S)

    # -- the comparison --------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        found, ledger, reader = self.found, self._ledger, self._reader
        committed = reader.committed()
        found.promised, found.committed = len(ledger.promised), len(committed)
        for identity in ledger.promised.keys() - committed.keys():
            told = ledger.told_of(identity) or "nobody was told"
            found.wrong.append(f"missing: {identity} ({told}); the journal said: {reader.failed.get(identity)}")
        for identity, data in committed.items():
            if fault := numbered_states.fault_in_store(self.objects, data):
                found.wrong.append(f"torn: {identity} in the end: {fault}")
            number, kind = data["metadata"]["number"], data["metadata"]["kind"]
            save = ledger.promised.get(identity)
            if (number, kind) != ((save.number, save.kind) if save else (number, ledger.begun.get(number))):
                found.wrong.append(f"{identity} is visible, and nobody saved it")
        found.wrong += [f"torn: {path} for a reader: {fault}" for path, fault in reader.partial.items()]
        found.wrong += [*reader.backwards, *ledger.errors, *ledger.misled(set())]
        if ledger.listed != committed.keys():
            found.wrong.append(f"list() has {sorted(ledger.listed or ())}, the store {sorted(committed)}")
        self._judge_end()

    def _judge_end(self) -> None:
        if rest := left_at_the_end(self._mark, [self._annexes, str(self._spool)], _EVENT_S):
            self.found.wrong.append(f"left at the end: {rest}")


class _Attempt(Program):
    """One attempt from outside."""

    def __init__(
        self, spec: Spec, environment: Mapping[str, str], ledger: Ledger, look: Callable[[], None]
    ) -> None:  # fmt: skip
        self._ledger = ledger
        #: Of the subprocess, and how many saves were begun and promised.
        self.child: int | None = None
        self.begun = self.saves = 0
        super().__init__("harness.kills.state_trainer", spec.to_text(), environment, look)

    def __enter__(self) -> _Attempt:
        return self

    def take(self, line: dict[str, Any]) -> None:
        self.child = line.get("child", self.child)
        self.begun += "begin" in line
        self._ledger.take(line)
        self.saves += "saved" in line

    def others(self) -> list[int]:
        return [self.child or 0]

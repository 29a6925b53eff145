"""One round: ranks that save states together are killed in start after start and attempt after attempt.

What all ranks had saved is in the store in the end, and each start of the ranks begins with the newest of these, or a
newer one, the same on all ranks. What is visible has the states of all ranks. Nothing waits long, and nothing is left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from async_ckpt import layout
from async_ckpt.config import ENV_PREFIX
from async_ckpt.state.load import rank_folder
from async_ckpt.state.read import read_state
from async_ckpt.stores.base import StoreSpec
from harness.common.process_mark import ProcessMark
from harness.flow_runs.environments import with_our_modules
from harness.kills import numbered_states
from harness.kills.from_outside import annexes_of, left_at_the_end
from harness.kills.rank_attempt import Attempt, Told
from harness.kills.spool_processes import AGENT, TASK, UPLOADER, agent_of, uploader_of
from harness.kills.state_kills import RANDOM, Found
from harness.kills.state_ranks import Spec, content
from harness.kills.store_reader import Reader
from harness.kills.told import FAIL
from harness.tasks import task
from harness.tasks.task import kill

ONE, FIRST, ALL = "one", "first", "all"

#: Which ranks, and who else, are killed together, by what a round calls its victim.
VICTIMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a rank": (ONE, ()), "rank 0": (FIRST, ()), "all ranks": (ALL, ()), "a rank and the agent": (ONE, (AGENT,)),
    "agent of ranks": ("", (AGENT,)), "task of ranks": ("", (TASK,)),
    "ranks and all else": (ALL, (TASK, AGENT, UPLOADER)),
}  # fmt: skip

#: The settings by which ranks wait for each other, in seconds; the second one is waited for by nobody here.
_SETTINGS = {"COLLECTIVE_GRACE_S": 1, "COLLECTIVE_TIMEOUT_S": 600, "SETTLE_TIMEOUT_S": 60}

#: Limits (seconds): of a moment that may not come, of a new start of the ranks until all have resumed, of an end.
_MOMENT_S, _START_S, _END_S = 5.0, 30.0, 60.0


class RankRound:
    """See the module's docstring.

    Parameters
    ----------
    base : Path
        An empty directory for all of it.
    objects : Path
        Where the store's objects lie as files.
    victim, moment : str
        A key of ``VICTIMS``, one of the ``MOMENTS`` of ``state_kills``. Without ranks among the victims: at random.
    state_dir : str
        Where states are staged.
    ranks : int
        So many save together.
    kills : int
        So many times.
    """

    def __init__(
        self, base: Path, store: StoreSpec, objects: Path, victim: str, moment: str, seed: int,
        *, state_dir: str = "/dev/shm", ranks: int = 2, kills: int = 4,
    ) -> None:  # fmt: skip
        self.base, self._store, self.objects, self._ranks, self._kills = base, store, objects, ranks, kills
        self._which, self._others = VICTIMS[victim]
        self._moment = moment if self._which else RANDOM
        self._random, self._mark, self._strikes = random.Random(seed), ProcessMark(), 0
        self.found, self._told = Found(rounds=1), Told(ranks)
        digest = layout.short_hash([task.TASK.pathspec, store.root], 16)
        self._spool = base / "spools" / digest
        self._annexes = annexes_of(digest, state_dir)
        self._settings = {f"{ENV_PREFIX}{name}": str(seconds) for name, seconds in _SETTINGS.items()}
        self._settings[f"{ENV_PREFIX}STATE_DIR"] = state_dir
        self._reader = Reader(objects, self._spool, self._told.ledger, self._fault_in_store)
        self._markers = str(base / "crashed")

    def run(self) -> Found:
        """Kill, let a last attempt finish, compare."""
        self._reader.start()
        number = 0
        while self._strikes < self._kills:
            self._one_attempt(number)
            number += 1
        with self._attempt(number, saves=2) as last:
            if not last.wait_for(lambda: last.ended, _END_S):
                self._wrong(f"the last attempt does not end: {self._told.ledger.said[-3:]}")
        self._reader.over.set()
        self._reader.join()
        self._reader.look()
        self._judge()
        return self.found

    # -- attempts --------------------------------------------------------------------------------------------------

    def _attempt(self, number: int, **fields: Any) -> Attempt:
        for rank in range(self._ranks):
            self._marker(rank).touch()
        crash_at = "" if self._moment == RANDOM else self._moment
        spec = Spec(
            str(self.base / "spools"), asdict(self._store), number, self._random.getrandbits(32), self._ranks,
            crash_at, self._markers, **fields,
        )  # fmt: skip
        return Attempt(spec, {**with_our_modules(), **self._mark.environment, **self._settings}, self._told)

    def _one_attempt(self, number: int) -> None:
        with self._attempt(number) as attempt:
            while self._strikes < self._kills and self._await_start(attempt):
                self._strike(attempt)
            if not attempt.ended:
                attempt.order(FAIL)
                if not attempt.wait_for(lambda: attempt.ended, _END_S):
                    self._wrong(f"attempt {number} does not end")

    def _await_start(self, attempt: Attempt) -> bool:
        """Until all ranks go on, and have saved."""
        began, saved = time.monotonic(), self._told.saved
        if not attempt.wait_for(lambda: attempt.resumed == self._ranks, _START_S):
            if not attempt.ended:
                self._wrong(f"ranks do not begin within {_START_S} s")
                self._strikes = self._kills
            return False
        self.found.slowest_start_s = max(self.found.slowest_start_s, time.monotonic() - began)
        return attempt.wait_for(lambda: self._told.saved > saved, _START_S)

    # -- killing ---------------------------------------------------------------------------------------------------

    def _strike(self, attempt: Attempt) -> None:
        start, pids = attempt.start, attempt.ranks
        chosen = {ONE: [self._random.randrange(self._ranks)], FIRST: [0], ALL: range(self._ranks)}.get(self._which, [])
        if self._moment == RANDOM:
            begun = self._told.begun
            attempt.wait_for(lambda: self._told.begun > begun, _MOMENT_S)
            attempt.wait_for(lambda: False, self._random.random() * self._random.choice((0.01, 0.1)))
        else:
            for rank in chosen:
                self._marker(rank).unlink()
            attempt.wait_for(lambda: any(self._marker(rank).exists() for rank in chosen), _MOMENT_S)
        others = {TASK: attempt.pid, AGENT: agent_of(self._spool) or 0, UPLOADER: uploader_of(self._spool) or 0}
        victims = [(f"rank {rank}", pids[rank]) for rank in chosen] + [(name, others[name]) for name in self._others]
        self._random.shuffle(victims)
        for name, pid in victims:
            died_there = name.startswith("rank") and self._moment != RANDOM and self._marker(int(name[5:])).exists()
            if died_there or (pid and task.is_alive(pid) and kill(pid)):
                self.found.kills[name] += 1
        for rank in chosen:
            self._marker(rank).touch()
        self._strikes += 1
        if TASK in self._others:
            attempt.wait_for(lambda: attempt.ended, _END_S)
        elif self._which:
            attempt.wait_for(lambda: attempt.start != start, _START_S)

    def _marker(self, rank: int) -> Path:
        return Path(f"{self._markers}-{rank}")

    # -- the comparison --------------------------------------------------------------------------------------------

    def _wrong(self, what: str) -> None:
        self.found.wrong.append(what)

    def _fault_in_store(self, root: Path, reference: Mapping[str, Any]) -> str:
        """What is wrong with a checkpoint that can be seen: it has the states of all ranks."""
        number, kind = reference["metadata"]["number"], reference["metadata"]["kind"]
        for rank in range(self._ranks):
            try:
                state = read_state(root / reference["key"] / rank_folder(rank))
            except Exception as error:
                return f"rank {rank}: {type(error).__name__}: {error}"
            if fault := numbered_states.fault_of(state, kind, content(number, rank)):
                return f"rank {rank}: {fault}"
        return ""

    def _judge(self) -> None:
        found, told, reader = self.found, self._told, self._reader
        committed = reader.committed()
        found.promised, found.committed = len(told.ledger.promised), len(committed)
        for identity in told.ledger.promised.keys() - committed.keys():
            self._wrong(f"missing: {identity} ({told.ledger.told_of(identity) or 'nobody was told'})")
        for identity, data in committed.items():
            if fault := self._fault_in_store(self.objects, data):
                self._wrong(f"torn: {identity} in the end: {fault}")
        found.wrong += [f"torn: {path} for a reader: {fault}" for path, fault in reader.partial.items()]
        found.wrong += [*reader.backwards, *told.ledger.errors, *told.ledger.misled(set()), *told.differing()]
        if rest := left_at_the_end(self._mark, [self._annexes, str(self._spool)], _END_S):
            self._wrong(f"left at the end: {rest}")

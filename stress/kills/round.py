"""One round: a task in a store of its own is killed again and again, attempt after attempt; then all is compared."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from async_ckpt import layout
from async_ckpt.config import ENV_PREFIX
from async_ckpt.stores.base import StoreSpec
from harness.common.process_mark import ProcessMark
from harness.kills.ledger import Ledger
from harness.kills.numbered_saves import fault_in_store
from harness.kills.spool_processes import AGENT, TASK, UPLOADER, agent_of, uploader_of, who_dies_at
from harness.kills.store_reader import Reader
from harness.kills.told import CLOSE, FAIL, FINISH
from harness.tasks import task
from harness.tasks.task import kill
from stress.kills.attempt import Attempt
from stress.kills.figures import Figures
from stress.kills.saver import Spec

RANDOM = "at random"

#: Who is killed together, by what a round calls its victim.
VICTIMS: dict[str, tuple[str, ...]] = {
    "task": (TASK,), "agent": (AGENT,), "uploader": (UPLOADER,), "all at once": (TASK, AGENT, UPLOADER),
}  # fmt: skip
MIXED = "mixed"
_MIXED = [*VICTIMS.values(), (AGENT, UPLOADER)]

#: A launcher takes six starts within 30 s for a crash loop, an agent five deaths of uploaders that bring nothing.
_AGENTS_PER_ATTEMPT, _USELESS_UPLOADERS = 4, 3
_ATTEMPT_KILLS, _LAST_TRIES = 8, 3

#: Limits (seconds): of a moment that may not come, of what must come, of a flush, of a round's kills.
_MOMENT_S, _EVENT_S, _FLUSH_S, _ROUND_S = 3.0, 30.0, 150.0, 180.0


@dataclass(frozen=True)
class Place:
    """Where a round is: its directory, its store, and where that one's objects lie as files."""

    base: Path
    store: StoreSpec
    objects: Path


class Round:
    """See the module's docstring.

    Parameters
    ----------
    victim, moment : str
        A key of ``VICTIMS`` or ``MIXED``; a named point or ``RANDOM``.
    kills : int
        So many, about.
    """

    def __init__(self, place: Place, victim: str, moment: str, kills: int, seed: int) -> None:
        self._place, self._victim, self._moment, self._kills = place, victim, moment, kills
        self._random = random.Random(seed)
        self._in_place = self._random.random() < 0.5
        self.figures, self._ledger = Figures(rounds=1), Ledger()
        digest = layout.short_hash([task.TASK.pathspec, place.store.root], 16)
        self._spool = place.base / "spools" / digest
        self._reader = Reader(place.objects, self._spool, self._ledger)
        self._marker, self._mark = place.base / "crashed", ProcessMark()
        self._useless, self._journal_bytes = 0, 0
        self._tracebacks: set[str] = set()

    def run(self) -> Figures:
        """Kill, let a last attempt finish, compare."""
        (self._place.base / "work").mkdir()
        self._reader.start()
        number, until = 0, time.monotonic() + _ROUND_S
        while self.figures.kills.total() < self._kills and time.monotonic() < until:
            self._one_attempt(number)
            number += 1
        self._disarm()
        self._last_attempt(number)
        self._judge()
        return self.figures

    # -- attempts --------------------------------------------------------------------------------------------------

    def _spec(self, number: int, **fields: Any) -> Spec:
        environment = dict(self._mark.environment)
        if self._moment != RANDOM:
            environment[f"{ENV_PREFIX}CRASH_AT"] = f"{self._moment}@{self._marker}"
        newest = max(self._ledger.promised.values(), key=lambda save: save.order, default=None)
        # What a dead task left, if nobody holds its leases any more, is torn by this; else it must not be.
        spoil = newest.kind if newest is not None and self._in_place and self._random.random() < 0.5 else ""
        return Spec(
            str(self._place.base / "spools"), str(self._place.base / "work"), self._place.store, number,
            self._random.getrandbits(32), self._in_place, spoil, environment=environment, **fields,
        )  # fmt: skip

    def _one_attempt(self, number: int) -> None:
        self._disarm()
        attempt = Attempt(self._spec(number), self._ledger)
        enough = min(self.figures.kills.total() + _ATTEMPT_KILLS, self._kills)
        while not attempt.ended:
            if attempt.agents_killed >= _AGENTS_PER_ATTEMPT or self.figures.kills.total() >= enough:
                attempt.order(FAIL)
                if not attempt.until(lambda: attempt.ended, _FLUSH_S):
                    self._ledger.errors.append(f"attempt {number} does not end")
                    attempt.kill()
                break
            self._strike(attempt)
        self._look_at_log()
        if self._random.random() < 0.3:  # An agent that drains may be at its end, or past it.
            pause = time.monotonic() + self._random.random() * 0.5
            task.wait_until(lambda: time.monotonic() >= pause or not agent_of(self._spool), "the pause is over")

    def _last_attempt(self, number: int) -> None:
        for last in range(number, number + _LAST_TRIES):
            attempt = Attempt(replace(self._spec(last), saves=2), self._ledger)
            if attempt.hear("saved", _EVENT_S):
                break
            attempt.kill()  # Why it did not start is in the ledger; what was promised is to be judged all the same.
        attempt.order(FINISH)
        if not attempt.hear("listed", _FLUSH_S):
            self._ledger.errors.append("the last attempt does not finish")
        self._reader.over.set()
        self._reader.join()
        self._reader.look()
        self._look_at_log()
        for name in ("journal", "agent.log"):  # To be looked at, if something is wrong.
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(self._spool / name, self._place.base)
        attempt.order(CLOSE)
        if not attempt.until(lambda: attempt.ended, _EVENT_S):
            self._ledger.errors.append("the last attempt does not end")
            attempt.kill()

    def _look_at_log(self) -> None:
        """Agents and uploaders have no bugs that their restart hides."""
        try:
            text = (self._spool / "agent.log").read_text(errors="replace")
        except OSError:
            return
        for part in text.split("Traceback (most recent call last)")[1:]:
            error = next(
                (line for line in part.splitlines() if line and not line[0].isspace() and ":" in line[1:]), "?"
            )
            if error not in self._tracebacks:
                self._tracebacks.add(error)
                self._ledger.errors.append(f"in agent.log: {error}")

    # -- killing ---------------------------------------------------------------------------------------------------

    def _strike(self, attempt: Attempt) -> None:
        victims = list(self._random.choice(_MIXED) if self._victim == MIXED else VICTIMS[self._victim])
        self._random.shuffle(victims)
        uploader_dies = UPLOADER in victims or (self._moment != RANDOM and who_dies_at(self._moment) == UPLOADER)
        if uploader_dies and AGENT not in victims and not self._uploaders_may_die(attempt):
            return
        moment = self._moment
        if moment == RANDOM:
            self._await_random_moment(attempt, victims)
        elif self._await_point(attempt):
            who = who_dies_at(moment)
            victims = [role for role in victims if role != who]
            self._count(who, moment, attempt)
        else:
            moment = RANDOM  # It did not come: killed all the same, so that there is an end.
        pids = {role: self._pid(role, attempt) for role in victims}
        killed = [role for role, pid in pids.items() if pid is not None and task.is_alive(pid) and kill(pid)]
        for role in killed:
            self._count(role, moment, attempt)
        if TASK in killed:
            attempt.await_end()

    def _await_random_moment(self, attempt: Attempt, victims: list[str]) -> None:
        (phase,) = self._random.choices(("storing", "saving", "starting"), (4, 3, 2))
        if phase == "storing":
            size = self._journal_size()
            attempt.until(lambda: self._journal_size() > size, _MOMENT_S)
        elif phase == "saving":
            attempt.hear("saved", _MOMENT_S)
        attempt.listen(self._random.random() * (0.05 if phase == "starting" else 0.2))
        if victims == [AGENT]:
            attempt.until(lambda: agent_of(self._spool), _MOMENT_S)
        elif victims == [UPLOADER]:
            attempt.until(lambda: uploader_of(self._spool), _MOMENT_S)

    def _await_point(self, attempt: Attempt) -> bool:
        """Let the next process that comes by the point die there."""
        self._marker.unlink(missing_ok=True)
        reached = attempt.until(self._marker.exists, _MOMENT_S)
        self._disarm()
        return reached

    def _disarm(self) -> None:
        self._marker.touch()

    def _uploaders_may_die(self, attempt: Attempt) -> bool:
        if self._useless < _USELESS_UPLOADERS:
            return True
        size = self._journal_bytes
        if attempt.until(lambda: self._journal_size() != size, _EVENT_S):
            self._useless = 0
            return True
        if not attempt.ended:
            self._ledger.errors.append(f"nothing comes to the store for {_EVENT_S:g} s")
            attempt.kill()
        return False

    def _pid(self, role: str, attempt: Attempt) -> int | None:
        if role == TASK:
            return None if attempt.ended else attempt.pid
        return agent_of(self._spool) if role == AGENT else uploader_of(self._spool)

    def _count(self, role: str, moment: str, attempt: Attempt) -> None:
        self.figures.kills[role, moment] += 1
        if role == AGENT:
            attempt.agents_killed += 1
            self._useless = 0
            self._ledger.agent_died()
        elif role == UPLOADER:
            size = self._journal_size()
            self._useless = self._useless + 1 if size == self._journal_bytes else 1
            self._journal_bytes = size

    def _journal_size(self) -> int:
        try:
            return os.stat(self._spool / "journal").st_size
        except OSError:
            return 0

    # -- the comparison --------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        figures, ledger, reader = self.figures, self._ledger, self._reader
        committed = reader.committed()
        figures.saves, figures.looks = len(ledger.promised), reader.looks
        figures.committed = len(ledger.promised.keys() & committed.keys())
        figures.slowest_save_s, figures.slowest_write_s = ledger.slowest_save_s, ledger.slowest_write_s
        failed = reader.failed.keys() - committed.keys()  # Those may be missing in order, whatever else is wrong.
        for identity in ledger.promised.keys() - committed.keys():
            if self._in_place and ledger.may_have_failed(identity):
                figures.failed += 1
            else:
                told = ledger.told_of(identity) or "nobody was told"
                why = reader.failed.get(identity, "nothing of a failure")
                figures.violation("missing", f"{identity} ({told}); the journal said: {why}")
        for identity, data in committed.items():
            number, kind = data["metadata"]["number"], data["metadata"]["kind"]
            if fault := fault_in_store(self._place.objects, data):
                figures.violation("partial", f"{identity} in the end: {fault}")
            save = ledger.promised.get(identity)
            figures.unheard += save is None
            if (number, kind) != ((save.number, save.kind) if save else (number, ledger.begun.get(number))):
                figures.violation("other", f"{identity} is visible, and nobody saved it")
        for path, fault in reader.partial.items():
            figures.violation("partial", f"{path} for a reader: {fault}")
        for identity in reader.out_of_order():
            figures.violation("out_of_order", f"{identity} was not there when a newer one was")
        self._judge_latest(committed)
        if ledger.listed != committed.keys():
            figures.violation("other", f"list() has {sorted(ledger.listed or ())}, the store {sorted(committed)}")
        for what in [*ledger.errors, *ledger.misled(failed)]:
            figures.violation("other", what)
        self._judge_end()

    def _judge_latest(self, committed: dict[str, dict[str, Any]]) -> None:
        for what in self._reader.backwards:
            self.figures.violation("out_of_order", what)
        newest = max(committed.values(), key=layout.order, default={"key": None})["key"]
        for folder in (task.TASK.task_folder, task.TASK.scope_folder):
            found = self._reader.latest(folder)
            if found != newest:
                self.figures.violation("out_of_order", f"latest in {folder} is {found} instead of {newest}")

    def _judge_end(self) -> None:
        deadline = time.monotonic() + _EVENT_S

        def gone() -> bool:
            return not (self._spool.exists() or self._mark.processes()) or time.monotonic() >= deadline

        task.wait_until(gone, "the agent has gone with its spool", 2 * _EVENT_S)
        if self._spool.exists():
            self.figures.violation("other", "the spool is still there after a step that ended well")
        if left := self._mark.processes():
            self.figures.violation("other", f"processes are left: {left}")
            for pid in left:
                kill(pid)

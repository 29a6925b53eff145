"""Machines that are lost: was it said beforehand what was really lost? And does ``due("auto")`` lose least?

    python -m stress.exposure [--losses 200] [--failures 300] [--seed N]

Needs what the tests need. First, tasks save on a clock that stands still until it is told to go on, with agents that
are killed, retries, an unreachable or slow store, and wall clocks that are set. At a random moment ``status()`` is
asked and the machine is gone. What was lost is then seen from the store's content alone. Exit status 1 if more was lost
than was said, or if more was said than was lost by over an interval and what nobody can tell (``Life.is_explained``).

Second, trainings run on generated traces of failures (exponential, and Weibull with shape 0.7, as failures of large
machines come in bursts), once with ``due("auto")`` and once with each fixed interval of a sweep. Exit status 1 if the
best of these gets over 1 % more done.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.spool.recovery import Recovery
from async_ckpt.spool.recovery import write as write_down
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.clock import REAL_CLOCK, moment
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.due import Due, best_interval_s
from harness.common.clock import StillClock
from harness.stores.failing_store import DOWN, FAIR
from harness.tasks.single_thread import World
from harness.tasks.task import TASK
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.exposure"

# -- what was lost -----------------------------------------------------------------------------------------------------

_SETTINGS = Config(local_fsync=False, store_attempts=1, spot_notice_file="", min_free_bytes=0)

#: A commit is visible some calls of the store before the agent has its answer, and up to 16 are made together.
_CALLS = 64
#: What the turns of all processes take on the clock, all in all.
_TURNS_S = 1.0


class Life:
    """One task, until its machine is lost. Its state is how many seconds it has trained."""

    def __init__(self, base: Path, chance: random.Random) -> None:
        self.world, self.chance = World(base, _SETTINGS), chance
        self.figures: Counter[str] = Counter()
        self.trained = self.since = self.idle = 0.0
        self.attempt = -1
        #: Seconds between saves; how often in a second the store's next call is done; whether a retry loads them.
        self.every = chance.choice([5, 20, 60])
        self.speed = chance.choice([0.1, 0.5, 3.0])
        self.latest = chance.random() < 0.9
        #: The longest time without a save that counts.
        self.gap = 0.0
        self.wall_jump_ns = 0
        real_ns = self.world.clock.time_ns
        self.world.clock.time_ns = lambda: real_ns() + self.wall_jump_ns  # type: ignore[method-assign]
        self.begin()

    def begin(self) -> None:
        began = self.world.clock.now
        self.attempt += 1
        task = replace(TASK, attempt=self.attempt)
        world = self.world
        self.task = Checkpointer.start(world.root, task, world.store, world.config, uploader="process")
        self.work = Path(self.task.spool.new_work_directory())
        loaded = self.task.load_newest("fresh", str(self.work)) if self.attempt else None
        before, self.trained = self.trained, float(loaded["metadata"]["trained"]) if loaded else 0.0
        self.since = 0.0
        # What an earlier attempt had done in vain, and the time between two attempts, are not told from work.
        self.idle += before - self.trained + world.clock.now - began

    def second(self) -> None:
        """Train for a second, and have something happen."""
        world, chance = self.world, self.chance
        world.clock.advance(1.0)
        self.trained += 1.0
        self.since += 1.0
        self.gap = max(self.gap, self.since)
        self.turns()
        for _ in range(int(self.speed + chance.random())):
            world.turn_of_uploader()
        before = world.clock.now
        if chance.random() < 1 / self.every:
            (self.work / "state").write_text(str(self.trained))
            self.task.save(self.work, metadata={"trained": self.trained}, latest=self.latest)
            self.since = 0.0
            self.figures["saves"] += 1
        elif chance.random() < 0.03 and self.latest:  # It is no use to a retry, and must not count.
            self.task.save(self.work, metadata={"trained": self.trained}, latest=False, name="best")
            self.figures["saves that no retry loads"] += 1
        self.idle += world.clock.now - before  # The first save may wait for the number of the start.
        what = chance.choices(
            ["nothing", "agent killed", "uploader killed", "weather changed", "clock set", "retry"],
            [1, 0.01, 0.01, 0.01, 0.01, 0.003],
        )[0]
        if what == "agent killed":
            world.kill_agent()
        elif what == "uploader killed":
            world.kill_uploader()
        elif what == "weather changed":
            world.sky.now = DOWN if world.sky.now == FAIR else FAIR
        elif what == "clock set":
            self.wall_jump_ns = int(chance.uniform(-1e6, 1e6) * 1e9)
        elif what == "retry" and self.latest and world.sky.now == FAIR:
            world.kill_task()
            self.begin()
        self.figures[what] += what != "nothing"

    @property
    def allowed_s(self) -> float:
        """By how much more may be said to be lost than is, once the agent has heard of all that is in the store."""
        return self.gap + self.idle + _TURNS_S

    def turns(self) -> None:
        """All have their turns, and the store does nothing."""
        for _ in range(3):
            self.world.turn_of_agent_alone()
            self.world.turn_of_guard()
            self.world.turn_of_remover()
            self.world.turn_of_client()
            self.world.loop.run_until_idle()

    def lost(self) -> float:
        """How many seconds of work the store's content does not have."""
        store = Path(self.world.store.root)
        stored = [json.loads(path.read_bytes()) for path in (store / TASK.task_folder).glob("*.metadata")]
        newest = max((item for item in stored if layout.is_latest(item) == self.latest), key=layout.order, default=None)
        if newest is None:
            return self.trained
        assert float((store / newest["key"] / "state").read_text()) == newest["metadata"]["trained"]
        return self.trained - float(newest["metadata"]["trained"])

    def lose(self) -> tuple[float, float, float]:
        """The machine is lost. Returns how many seconds of work were said to be lost with it; how many would have been
        when it was asked; and how many were, as the store goes on while it is asked.
        """
        self.turns()  # The agent hears what the store has by now.
        before = self.lost()
        return self.said(), before, self.lost()

    def said(self) -> float:
        return float(self.task.status()["exposure"]["machine_s" if self.latest else "by_hand_s"])

    def is_explained(self) -> bool:
        """Whether the loss is said as it is once the store has answered to the commits that are under way."""
        for _ in range(_CALLS):
            self.world.turn_of_uploader()
            self.turns()
        return self.said() <= self.lost() + self.allowed_s


def lose_machines(count: int, seed: int) -> tuple[list[dict[str, Any]], int]:
    """So many lives. Returns rows, and how many were not as they must be."""
    figures: Counter[str] = Counter()
    errors, bad, over = [], 0, 0
    for number in range(count):
        chance = random.Random(seed * 1_000_003 + number)
        with tempfile.TemporaryDirectory(prefix="exposure-") as base:
            life = Life(Path(base), chance)
            try:
                for _ in range(chance.randrange(20, 600)):
                    life.second()
                said, before, lost = life.lose()
                explained = said <= before + life.allowed_s or life.is_explained()
            finally:
                life.world.close()
        figures += life.figures
        errors.append(said - lost)
        over += said > before + life.gap + 1e-6
        if said < lost - 1e-6 or not explained:
            bad += 1
            print(f"loss {number} of seed {seed}: {said:.1f} s were said, and {lost:.1f} s were lost", flush=True)
    less = sum(error < -1e-6 for error in errors)
    rows = [
        {"": "machines lost", "figure": count},
        {"": "of these: more was lost than status() had said", "figure": less},
        {"": "more was said than lost by over an interval", "figure": over},
        {"": "by over an interval and what nobody can tell", "figure": bad - less},
        {"": "said minus lost: median, s", "figure": round(results.median(errors), 3)},
        {"": "the same at most, s", "figure": round(max(errors), 1)},
        *({"": f"what happened: {what}", "figure": times} for what, times in sorted(figures.items())),
    ]
    return rows, bad


# -- due("auto") -------------------------------------------------------------------------------------------------------

#: Seconds between two questions, and from a failure to the first step after it.
_STEP_S, _RESTART_S = 4.0, 60.0


def trace(kind: str, mtbf_s: float, failures: int, chance: random.Random) -> list[float]:
    """Seconds from one failure to the next, with that mean."""
    if kind == "exponential":
        return [chance.expovariate(1 / mtbf_s) for _ in range(failures)]
    return [chance.weibullvariate(mtbf_s / 1.2658235, 0.7) for _ in range(failures)]  # gamma(1 + 1 / 0.7)


class Training:
    """Trains on a clock that stands still. Each save takes ``cost_s`` from it, and ``upload_s`` until it is durable."""

    def __init__(self, cost_s: float, upload_s: float, slowdown: float) -> None:
        self.cost_s, self.upload_s, self.slowdown = cost_s, upload_s, slowdown

    def goodput(self, lifetimes: list[float], start: Callable[[], Asker]) -> float:
        """Which share of the time is work that was not lost."""
        done = total = 0.0
        for lifetime in lifetimes:
            asker, work, durable, pipe = start(), 0.0, 0.0, 0.0
            clock = asker.clock
            began = clock.now
            uploads: list[tuple[float, float]] = []
            while (age := clock.now - began) < lifetime:
                while uploads and uploads[0][0] <= age:
                    durable = uploads.pop(0)[1]
                    asker.uploaded(self.upload_s, len(uploads))
                if asker.ask():
                    clock.sleep(self.cost_s)
                    pipe = max(pipe, clock.now - began) + self.upload_s
                    uploads.append((pipe, work))
                    asker.saved(self.cost_s)
                else:
                    step_s = min(asker.step_s, max(uploads[0][0] - age, _STEP_S) if uploads else lifetime)
                    clock.sleep(step_s)
                    work += step_s * (1 - self.slowdown if uploads else 1)
            durable = max([durable, *(state for at, state in uploads if at <= lifetime)])
            done += durable
            total += lifetime + _RESTART_S
        return done / total


class Asker:
    """Saves at a fixed interval."""

    def __init__(self, every_s: float) -> None:
        self.clock, self._every_s = StillClock(), every_s
        self._last = self.clock.now

    def ask(self) -> bool:
        return self.clock.now - self._last >= self._every_s

    @property
    def step_s(self) -> float:
        """How long to train until the next question: nothing changes before."""
        return max(self._last + self._every_s - self.clock.now, _STEP_S)

    def saved(self, cost_s: float) -> None:
        self._last = self.clock.now - cost_s

    def uploaded(self, upload_s: float, left: int) -> None:
        """It need not know."""


class Auto(Asker):
    """Saves when the real ``due("auto")`` says so, in a process that begins anew after each failure."""

    def __init__(self, spool: Spool, mtbf_s: float) -> None:
        super().__init__(0)
        self._step_s = max(
            mtbf_s / 1000, _STEP_S
        )  # A training of days has steps of many seconds, or it takes long here.
        self._spool, self._note = spool, Recovery(attempt=0, began=moment(self.clock))
        self._write()
        self._due = Due(spool, Config(mtbf_s=mtbf_s), self.clock, moment(self.clock))

    @property
    def step_s(self) -> float:
        return self._step_s

    def ask(self) -> bool:
        return self._due.is_due("auto", False)

    def saved(self, cost_s: float) -> None:
        self._due.saved(moment(self.clock)._replace(since_boot_s=self.clock.now - cost_s), latest=True)
        self._write(is_on_its_way=True)

    def uploaded(self, upload_s: float, left: int) -> None:
        self._write(upload_s=[upload_s], is_on_its_way=left > 0)

    def _write(self, **fields: Any) -> None:
        self._note = replace(self._note, **fields)
        write_down(self._spool.directory, self._note)


def compare(failures: int, seed: int) -> tuple[list[dict[str, Any]], int]:
    """Rows, and how many cases of ``due("auto")`` are over 1 % behind."""
    rows, bad = [], 0
    cases = [(1.0, 20.0), (10.0, 120.0), (30.0, 300.0), (5.0, 900.0)]
    with tempfile.TemporaryDirectory(prefix="exposure-") as base:
        spool = Spool.create(base, TASK, StoreSpec("local", f"{base}/store"))
        for kind in ("exponential", "Weibull 0.7"):
            for hours in (1.0, 6.0):
                for cost_s, upload_s in cases:
                    mtbf_s = hours * 3600
                    lifetimes = trace(kind, mtbf_s, failures, random.Random(f"{seed} {kind} {hours}"))
                    training = Training(cost_s, upload_s, Config.max_slowdown)
                    auto = training.goodput(lifetimes, lambda mtbf_s=mtbf_s: Auto(spool, mtbf_s))
                    wrong = training.goodput(lifetimes, lambda mtbf_s=mtbf_s: Auto(spool, 4 * mtbf_s))
                    middle = max(best_interval_s(cost_s, mtbf_s), upload_s)
                    swept = {
                        every: training.goodput(lifetimes, lambda every=every: Asker(every))
                        for every in (middle * 2 ** (step / 4) for step in range(-8, 9))
                    }
                    best = max(swept, key=lambda every: swept[every])
                    rows.append({
                        "failures": kind, "each, h": hours, "save costs, s": cost_s, "upload takes, s": upload_s,
                        "auto": f"{auto:.2%}", "best fixed": f"{swept[best]:.2%}", "its interval, s": round(best),
                        "auto / best": f"{auto / swept[best]:.4f}",
                        "with 4 x the time between failures": f"{wrong / swept[best]:.4f}",
                    })  # fmt: skip
                    bad += auto < 0.99 * swept[best]
                    print(rows[-1], flush=True)
    return rows, bad


def question_us() -> float:
    """How many microseconds of a core ``due()`` takes, where an agent has written something down."""
    with tempfile.TemporaryDirectory(prefix="exposure-") as base:
        spool = Spool.create(base, TASK, StoreSpec("local", f"{base}/store"))
        write_down(spool.directory, Recovery(attempt=0, began=moment(REAL_CLOCK)))
        due = Due(spool, Config(), REAL_CLOCK)
        blocks = []
        for _ in range(200):
            began = time.process_time()
            for _ in range(1000):
                due.is_due("10 min", None)
            blocks.append(time.process_time() - began)
        return results.median(blocks) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--losses", type=int, default=200, help="(default 200); 0: leave this out")
    parser.add_argument("--failures", type=int, default=300, help="in each trace (default 300); 0: leave this out")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    command, bad, behind = results.command(COMMAND, options.seed), 0, 0
    if options.losses:
        lost, bad = lose_machines(options.losses, options.seed)
        for row in lost:
            print(f"{row['']}: {row['figure']}")
        results.record("exposure", command, lost, caveats(quick=False))
    if not options.failures:
        return bool(bad)
    rows, behind = compare(options.failures, options.seed)
    notes = [
        f"One call of due() takes {question_us():.1f} µs of a core, the median of blocks of 1,000.",
        f"{options.failures} failures a trace, all intervals on the same one; a restart takes {_RESTART_S:.0f} s, and "
        "each begins without anything measured.",
        f"Cases in which the best fixed interval gets over 1 % more done: {behind}.",
    ]
    results.record("due", command, rows, notes)
    return bool(bad + behind)


if __name__ == "__main__":
    sys.exit(main())

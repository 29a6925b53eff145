"""What uploads at a pace are worth to the training loop: ``python -m stress.bench.pace [--minutes N] [--torch]``.

The loop of ``interference``, one step about 6 ms, saves a file every so many seconds: ours at a pace, ours at full
speed, boto3 in a thread, the incumbent, and not at all. They take turns in random order, in blocks of two saves each;
once with a core free for them, once with a second loop beside the first, so that both cores are busy. A step that saves
contains the save. Before the first block each saves three times, so that the interval between its saves is known.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

from . import results
from .aims import Aim
from .environment import Package, caveats, ours, peer, work_directory
from .interference import BUSY, ONE_FREE
from .servers import Target
from .targets import SINK, counted_target
from .tasks import Task, has_torch, numpy_directory, task

COMMAND = "python -m stress.bench.pace"
NONE, PACED, UNPACED, BOTO3, PEER = "none", "ours, paced", "ours, at full speed", "boto3 in a thread", "peer"
#: By which share a step may be longer than without saves: p50 and p99.
LIMITS = {ONE_FREE: (0.01, 0.10), BUSY: (0.02, 0.25)}
_SAVES = 2
_ENOUGH, _FEW = 1000, 50
_MIB = 1 << 20
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

TEXT = """A training loop of 6 ms a step that saves a file every so many seconds, in blocks that take turns in random
order. *above*: how much longer a step takes than without saves; *all steps* is the mean, with the time blocked in the
saves. *beside an upload*: how much longer than the other steps of the same blocks. *durable*: seconds from a save until
it is in the store, the median. Two cores; the server takes its share."""


@dataclass
class Way:
    """How is uploaded, and what was measured of it, by situation."""

    label: str
    package: Package
    uploads: str
    settings: dict[str, str] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=lambda: {ONE_FREE: [], BUSY: []})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {ONE_FREE: [], BUSY: []})
    beside: dict[str, list[bool]] = field(default_factory=lambda: {ONE_FREE: [], BUSY: []})

    def beside_above(self, situation: str) -> str:
        """How much longer a step takes beside an upload than the other ones of the same blocks: whatever else the
        machine does is beside both.
        """
        both: dict[bool, list[float]] = {True: [], False: []}
        for seconds, is_beside in zip(self.times[situation], self.beside[situation], strict=True):
            both[is_beside].append(seconds)
        return f"{_above(both[True], both[False], 0.5):+.1%}" if min(map(len, both.values())) >= _FEW else ""

    def note(self, situation: str, run: dict[str, Any]) -> None:
        self.times[situation] += run["times"]
        self.beside[situation] += run["beside"]
        self.seconds[situation] += run["seconds"]


def ways() -> list[Way]:
    mine, theirs = ours(), peer()
    return [
        Way(NONE, mine, "none"),
        Way(PACED, mine, "saves"),
        Way(UNPACED, mine, "saves", {"METAFLOW_ASYNC_CKPT_PACE": "full"}),
        Way(BOTO3, mine, "boto3"),
        Way(PEER, theirs, "saves"),
    ]


def measure(store: Target, work: str, options: argparse.Namespace, *, torch: bool) -> list[Way]:
    """All take turns in both situations, each in a task of its own, until the minutes are over."""
    all_ways = ways()
    end = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as stack:
        tasks: list[tuple[Way, Task]] = []
        for number, way in enumerate(all_ways):
            own = os.path.join(work, str(number))
            os.mkdir(own)
            trainer = task(way.package, store, own, commands="training", environment=way.settings)
            tasks.append((way, stack.enter_context(trainer)))
        amounts, *_ = [running.do("prepare", size=options.mib * _MIB, torch=torch) for _, running in tasks]
        how = {"every": options.every, **amounts}
        for way, running in tasks:
            if way.uploads != "none":
                running.do("train_for", uploads=way.uploads, seconds=3 * options.every, busy=False, **how)
        turns = 0
        while not turns or time.monotonic() < end:
            for situation in (ONE_FREE, BUSY):
                for way, running in random.sample(tasks, len(tasks)):
                    seconds = _SAVES * options.every
                    run = running.do("train_for", uploads=way.uploads, seconds=seconds, busy=situation == BUSY, **how)
                    way.note(situation, run)
            turns += 1
            print(f"{time.strftime('%H:%M:%S')} {turns} turns", flush=True)
    return all_ways


def rows_of(loop: str, measured: list[Way]) -> list[dict[str, Any]]:
    """One line each, beside the loop without saves."""
    rows = []
    for situation in (ONE_FREE, BUSY):
        bare = measured[0].times[situation]
        for way in measured:
            times = way.times[situation]
            figures = {name: value for name, value in results.summary(times).items() if name != "n"}
            is_bare = way.label == NONE
            rows.append({
                "loop": loop, "situation": situation, "uploads": way.label, "steps": len(times), **figures,
                "p50 above": "" if is_bare else f"{_above(times, bare, 0.5):+.1%}",
                "p99 above": "" if is_bare else f"{_above(times, bare, 0.99):+.1%}",
                "all steps above": "" if is_bare else f"{sum(times) / len(times) / (sum(bare) / len(bare)) - 1:+.1%}",
                "p50 beside an upload": way.beside_above(situation), "saves": len(way.seconds[situation]),
                "durable, s": results.median(way.seconds[situation]) if way.seconds[situation] else "",
            })  # fmt: skip
    return rows


def _above(times: list[float], bare: list[float], share: float) -> float:
    return results.percentile(times, share) / results.percentile(bare, share) - 1


def of_pace(rows: list[dict[str, Any]]) -> list[Aim]:
    """Whether the loop does not feel uploads at a pace."""
    bare = {(row["loop"], row["situation"]): row for row in rows if row["uploads"] == NONE}
    aims = []
    for row in rows:
        if row["uploads"] != PACED:
            continue
        base = bare[row["loop"], row["situation"]]
        found = [row[key] / base[key] - 1 for key in ("p50_ms", "p99_ms")]
        limits = LIMITS[row["situation"]]
        limited = f"p50 at most {limits[0]:.0%} and p99 at most {limits[1]:.0%} above none"
        met = all(figure <= limit for figure, limit in zip(found, limits, strict=True))
        figures = f"{found[0]:+.1%} and {found[1]:+.1%} of {row['steps']:,} steps"
        aims.append(
            Aim(
                f"Paced, {row['loop']}, {row['situation']}: {limited}",
                met,
                figures,
                "" if row["steps"] >= _ENOUGH else "These are too few steps to tell.",
            )
        )
    return aims


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one block each, with saves of 64 MiB every 4 s")
    parser.add_argument("--minutes", type=float, default=60.0, help="about so long in all (default 60)")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between saves (default 20)")
    parser.add_argument("--mib", type=int, default=512, help="of each save (default 512)")
    parser.add_argument("--torch", action="store_true", help="a loop of PyTorch as well, if there is one")
    options = parser.parse_args(arguments)
    if options.quick:
        options.minutes, options.every, options.mib = 0.0, 4.0, 64
    torch = options.torch and has_torch(ours()) and has_torch(peer())
    options.minutes /= 1 + torch
    rows = []
    for name in ("NumPy", "torch") if torch else ("NumPy",):
        with work_directory() as work, counted_target(SINK, work) as (store, _):
            # One thread of BLAS: the loop is meant to take one core.
            environment = store.environment | _ONE_THREAD | {"PYTHONPATH": numpy_directory()}
            store = dataclasses.replace(store, environment=environment)
            rows += rows_of(name, measure(store, work, options, torch=name == "torch"))
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    for aim in of_pace(rows):
        print(aim, flush=True)
    notes = caveats(quick=options.quick)
    notes.append(f"A save of {options.mib} MiB every {options.every:g} s.")
    results.record("pace", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

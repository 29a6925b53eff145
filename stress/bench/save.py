"""How long the caller is blocked in ``save()``: ``python -m stress.bench.save [--quick] [--store S] [--case LABEL]``.

Both packages run in a real Metaflow task each, at the same time but never both at work: they take turns in blocks.
Between two saves the trainer rewrites its files (all of them, up to 100), by a rename or in place. Big checkpoints wait
until the store has everything before the next save; small ones are saved as fast as the trainer goes.

``--before CHECKOUT`` puts another checkout of this project, installed in its ``.venv``, in the incumbent's place.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from typing import Any

from . import results
from .environment import Package, available_memory, caveats, ours, peer, touch_memory, work_directory
from .remote_task import RemoteTask, remote_task
from .servers import Target, target

Rows = list[dict[str, Any]]

COMMAND = "python -m stress.bench.save"
STORES = ("local", "s3")
#: What rows of an earlier version are called.
BEFORE = "before"

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_BLOCK_BYTES, _BLOCK_SAVES = _GIB, 20
_REWRITTEN = 100


@dataclass(frozen=True)
class Case:
    """``count`` files of ``size`` bytes. Saves wanted: ``ours``, ``peer`` (by rename), ``in_place`` (ours)."""

    label: str
    count: int
    size: int
    ours: int
    peer: int
    in_place: int

    @property
    def bytes(self) -> int:
        return self.count * self.size

    @property
    def block(self) -> int:
        """Saves in a row before the store is waited for."""
        return max(min(_BLOCK_SAVES, _BLOCK_BYTES // self.bytes), 1) if self.count <= 1000 else 1

    def quick(self) -> Case:
        if self.bytes > _GIB or self.count > 1000:
            return Case(self.label, self.count, self.size, 2, 1, 1)
        return Case(self.label, self.count, self.size, min(self.ours, 20), min(self.peer, 3), min(self.in_place, 5))


CASES = (
    Case("1 x 4 KiB", 1, 4 * _KIB, 200, 100, 100),
    Case("1 x 1 MiB", 1, _MIB, 200, 100, 100),
    Case("1 x 64 MiB", 1, 64 * _MIB, 200, 50, 50),
    Case("1 x 1 GiB", 1, _GIB, 20, 5, 5),
    Case("1 x 4 GiB", 1, 4 * _GIB, 4, 2, 2),
    Case("100 x 4 KiB", 100, 4 * _KIB, 200, 30, 50),
    Case("100 x 1 MiB", 100, _MIB, 200, 20, 20),
    Case("1,000 x 4 KiB", 1000, 4 * _KIB, 20, 5, 10),
    Case("10,000 x 4 KiB", 10000, 4 * _KIB, 3, 1, 1),
)


@dataclass
class Series:
    """What one package's task measured for one case and one way of rewriting."""

    task: RemoteTask
    wanted: int
    seconds: float
    blocked: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.blocked) >= self.wanted or self.seconds <= 0

    def run_block(self, case: Case, *, in_place: bool, pause: float) -> None:
        began = time.monotonic()
        count = min(case.block, self.wanted - len(self.blocked))
        seconds = max(self.seconds, 1.0)
        answer = self.task.do("saves", count=count, in_place=in_place, limit=_REWRITTEN, seconds=seconds, pause=pause)
        self.blocked += answer["blocked"]
        self.held += answer["held"] if in_place else []
        self.behind.append(self.task.do("drain")["seconds"])
        self.seconds -= time.monotonic() - began


def measure(case: Case, store: Target, work: str, limit_s: float, pause: float, rival: Package) -> tuple[Rows, Rows]:
    """One case on one store: rows of the table of saves, and of the one of writes in place."""
    with remote_task(ours(), store, work) as mine, remote_task(rival, store, work) as theirs:
        for task in (mine, theirs):
            task.do("prepare", count=case.count, size=case.size)
        alone = [mine.do("open_alone", limit=_REWRITTEN)["held"] for _ in range(3)]
        if rival.name == BEFORE:
            renamed, incumbent = Series(mine, case.ours, limit_s), Series(theirs, case.ours, limit_s)
        else:
            renamed, incumbent = Series(mine, case.ours, limit_s), Series(theirs, case.peer, limit_s / 2)
        while not (renamed.done and incumbent.done):
            for series in (renamed, incumbent):
                if not series.done:
                    series.run_block(case, in_place=False, pause=pause)
                    store.empty()
        in_place = Series(mine, case.in_place, limit_s / 2)
        while not in_place.done:
            in_place.run_block(case, in_place=True, pause=pause)
            store.empty()
    facts = {"store": store.name, "case": case.label, "files": case.count, "bytes": case.bytes}
    saves = [
        {**facts, "package": "ours", "first_ms": renamed.blocked[0] * 1000, **results.summary(renamed.blocked)},
        {**facts, "package": rival.name, "first_ms": incumbent.blocked[0] * 1000, **results.summary(incumbent.blocked)},
    ]
    writes = {
        **facts, **results.summary(in_place.blocked), "open_alone_ms": results.median(alone) * 1000,
        **results.summary(in_place.held, "open_"),
    }  # fmt: skip
    return saves, [writes]


def summary_line(mine: dict[str, Any], theirs: dict[str, Any], write: dict[str, Any]) -> str:
    """One case's figures for the terminal."""
    return (
        f"{mine['store']:6}{mine['case']:15} ours p50 {mine['p50_ms']:7.2f} p99 {mine['p99_ms']:7.2f} n {mine['n']} | "
        f"{theirs['package']} p50 {theirs['p50_ms']:8.2f} p99 {theirs['p99_ms']:7.2f} n {theirs['n']:3} | "
        f"{theirs['p50_ms'] / mine['p50_ms']:6.2f} x | "
        f"open {write['open_p50_ms']:7.1f} (alone {write['open_alone_ms']:.1f}) ms |"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--store", choices=STORES, help="only this one")
    labels = ", ".join(case.label for case in CASES)
    parser.add_argument("--case", action="append", default=[], help=f"only this one (may be repeated), of {labels}")
    parser.add_argument("--record", action="store_true", help="record for the report although cases are left out")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds for one package in one case (default 40)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds the trainer sleeps before a save (default 0)")
    parser.add_argument("--before", metavar="CHECKOUT", help="compare with another checkout of this project")
    options = parser.parse_args(arguments)
    checkout = os.path.abspath(options.before) if options.before else ""
    rival = Package(BEFORE, os.path.join(checkout, ".venv", "bin", "python")) if checkout else peer()
    cases = [
        case.quick() if options.quick else case for case in CASES if not options.case or case.label in options.case
    ]
    notes = caveats(quick=options.quick)
    if options.pause:
        notes.append(f"The trainer slept {options.pause * 1000:g} ms before each save.")
    saves: Rows = []
    writes: Rows = []
    touch_memory(available_memory() // 5 if options.quick else available_memory())
    for name in [options.store] if options.store else STORES:
        with work_directory() as work, target(name, work) as store:
            for case in cases:
                began = time.monotonic()
                more_saves, more_writes = measure(case, store, work, options.limit, options.pause, rival)
                saves += more_saves
                writes += more_writes
                print(
                    summary_line(more_saves[0], more_saves[1], more_writes[0]),
                    f"{time.monotonic() - began:4.0f} s",
                    flush=True,
                )
    if (options.store or options.case) and not options.record:
        print("Not recorded: the report shows whole runs, unless --record is given.")
        return
    command = results.command(COMMAND)
    if options.before:
        results.record("save_before", command, saves, notes)
        return
    results.record("save", command, saves, notes)
    results.record("in_place", command, writes, notes)


if __name__ == "__main__":
    main()

"""What a long history costs: ``python -m stress.bench.history [--quick] [--store S] [--count N]``.

A task that has 10, 1,000 or 10,000 checkpoints already: time in ``save()``, of the hook before the step, of asking the
store for this task's newest, and of the hook after the step, when nothing is left to upload. The history was saved

- *here*, by this very attempt (our spool's journal grew with it), or
- *elsewhere*, by an earlier attempt on another machine: this one starts with an empty spool, and loads the newest.

What ours saved here was saved for real. The rest is metadata written straight into the task's folder of the store,
without data: nobody ever reads that of older checkpoints.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from . import results
from .environment import Package, caveats, ours, peer, work_directory
from .objects import past_references, write_history
from .servers import Target
from .targets import SINK, counted_target
from .tasks import task

COMMAND = "python -m stress.bench.history"
STORES = ("local", SINK, "s3")
COUNTS = (10, 1_000, 10_000)
HERE, ELSEWHERE = "here", "elsewhere"

_BYTES, _SAVES, _LOOKS = 1024, 20, 5
_MANY = 10_000

Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    store: str
    history: str
    count: int
    package: str


def run_once(package: Package, store: Target, work: str, history: str, count: int) -> Figures:
    """One flow; all figures in seconds."""
    with task(package, store, work) as running:
        saved_here = package.name == "ours" and history == HERE
        saved = running.do("save_many", count=count if saved_here else 1, size=_BYTES)
        running.do("drain")
        if not saved_here:
            write_history(store, package, past_references(saved["reference"], count - 1))
        if history == ELSEWHERE:
            running.fail()
        figures: Figures = {"pre_step": running.started["pre_step"]}
        figures["latest"] = results.median(running.do("latest", count=_LOOKS)["seconds"])
        figures["save"] = results.median(running.do("save_many", count=_SAVES, size=_BYTES)["blocked"])
        running.do("drain")
    return figures | running.ended()


def row_of(case: Case, runs: list[Figures]) -> dict[str, Any]:
    medians = {f"{key}_ms": results.median([run[key] for run in runs]) * 1000 for key in runs[0]}
    row = {"store": case.store, "history": case.history, "checkpoints": case.count, "package": case.package}
    return {**row, "n": len(runs), **medians}


def measure(
    store: Target, work: str, history: str, counts: list[int], rounds: int, peer_limit_s: float, notes: list[str]
) -> list[dict[str, Any]]:
    """All counts, ascending; a count that would keep the incumbent's end of a task for too long is left out for it."""
    rows = []
    end_s_each = 0.0
    for count in counts:
        packages = [ours(), peer()]
        expected = end_s_each * count
        if expected > peer_limit_s:
            notes.append(f"{store.name}, {history}, {count:,}: left out for the peer, whose end of the task would take "
                         f"about {expected:,.0f} s.")  # fmt: skip
            packages = packages[:1]
        runs: dict[str, list[Figures]] = {package.name: [] for package in packages}
        for _ in range(1 if count >= _MANY else rounds):
            for package in packages:
                runs[package.name].append(run_once(package, store, work, history, count))
        if "peer" in runs:
            end_s_each = results.median([run["post_step"] for run in runs["peer"]]) / count
        for name, figures in runs.items():
            rows.append(row_of(Case(store.name, history, count, name), figures))
            print({k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 and 100 checkpoints, one flow of each instead of 3")
    parser.add_argument("--store", choices=STORES, action="append", help="default: local and sink")
    parser.add_argument("--history", choices=(HERE, ELSEWHERE), action="append", help="default: both")
    parser.add_argument("--count", type=int, action="append", help=f"default: {COUNTS}")
    parser.add_argument("--peer-limit", type=float, default=240.0, help="seconds its task's end may take (default 240)")
    options = parser.parse_args(arguments)
    counts = sorted(options.count or ((10, 100) if options.quick else COUNTS))
    rows, notes = [], caveats(quick=options.quick)
    for name in options.store or STORES[:2]:
        for history in options.history or (HERE, ELSEWHERE):
            with work_directory() as work, counted_target(name, work) as (store, _):
                rounds = 1 if options.quick else 3
                rows += measure(store, work, history, counts, rounds, options.peer_limit, notes)
    notes.append(
        "*elsewhere*: the hook before the step loads the newest checkpoint; *here*: it is the task's first attempt."
    )
    results.record("history", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

"""No file system, no writer and no strategy commits what was not there: every kind of writer rewrites a checkpoint of
several files during and after its capture, on every kind of file system that can be had here.

    python -m stress.filesystems [--rounds 10] [--only ext4 overlay …] [--seed N]

Each checkpoint in the store is judged by what its bytes say about when they were written: it must be of one moment of
its ``save()``. Exit status 1 if one is not, or did not get there. Needs root, and what the tests need.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from stress.bench import results
from tests.support.agents import Task
from tests.support.filesystems import CannotMount, twice, why_not
from tests.support.matrix import KINDS, Tally, cells, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=10, help="saves of each combination")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS, metavar="KIND")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    random_ = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    total = Tally()
    for kind in options.only:
        if reason := why_not(kind):
            print(f"{kind} left out: {reason}", flush=True)
            continue
        try:
            tally, count = _on(kind, options.rounds, random_)
        except CannotMount as error:
            print(f"{kind} left out: {error}", flush=True)
            continue
        rows.append(row(kind, tally, count))
        total.add(tally)
        print(rows[-1], flush=True)
        for line in tally.wrong + tally.failed:
            print(f"    {line}", flush=True)
    print(f"{len(total.wrong)} wrong, {len(total.failed)} failed of {total.saves} ({total.refused} refused)")
    results.record("filesystems", f"python -m stress.filesystems --rounds {options.rounds}", rows)
    return bool(total.wrong or total.failed)


def _on(kind: str, rounds: int, random_: random.Random) -> tuple[Tally, int]:
    total = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="async-ckpt-filesystems-") as base,
        twice(kind, Path(base), size=2 << 30) as (place, other),
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(base, "task").mkdir()
        task = Task(Path(base, "task"), patch)
        chosen = list(cells(kind))
        try:
            for tally in run(task, place, other, chosen, rounds, random_).values():
                total.add(tally)
        finally:
            if left := task.close():
                print(f"left behind: {left}", flush=True)
    return total, len(chosen)


def row(kind: str, tally: Tally, count: int) -> dict[str, Any]:
    """One line of the table."""
    seen = sum(tally.how.values()) or 1
    return {
        "file system": kind,
        "combinations": count,
        "saves": tally.saves,
        "wrong": len(tally.wrong),
        "failed": len(tally.failed),
        "refused, as it never stood still": tally.refused,
        "files were": ", ".join(f"{how} {count * 100 // seen} %" for how, count in sorted(tally.how.items())),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Many subprocesses of one task save at once through its one socket: what `save()` takes, and that all survive.

    python -m stress.fleet [--writers 64] [--saves 1000] [--every 1.0]

Needs what the tests need. The writers are started, wait for each other, and then each saves a directory of its own (a
file that is linked and one that is packed, both rewritten in place): first as fast as they can, then once in so many
seconds each, as trainers do. Afterwards every checkpoint in the store is compared with what its writer wrote. Exit
status 1 if one is missing, has another's content, or shares its version.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.tasks.fleet import Outcome, run
from harness.tasks.many_savers import BIG, SMALL
from harness.tasks.task import Task
from stress.bench import results
from stress.bench.environment import caveats, memory_directory, work_directory

COMMAND = "python -m stress.fleet"


def run_at(place: str, writers: int, saves: int, every_s: float) -> Outcome:
    """One round, with spool and writers on the disk, or in memory; the store is in memory either way."""
    directory = work_directory if place == "disk" else memory_directory
    with directory() as base, memory_directory() as store, pytest.MonkeyPatch.context() as patch:
        task = Task(Path(base, "task"), patch)
        task.store = StoreSpec("local", store)
        try:
            return run(task, writers, saves, every_s)
        finally:
            if left := task.close():
                print(f"left behind: {left}")


def row(place: str, outcome: Outcome, writers: int, saves: int, every_s: float) -> dict[str, Any]:
    """Its line of the table."""
    return {
        "spool": place, "writers": writers, "saves": saves,
        "each": f"every {every_s:g} s" if every_s else "as fast as it can",
        **{key: value for key, value in results.summary(outcome.blocked, "save ").items() if not key.endswith(" n")},
        "all saved after, s": outcome.saving_s, "flush, s": outcome.flush_s,
        "missing": outcome.missing, "other content": outcome.wrong, "same version": outcome.same_version,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--saves", type=int, default=1000, help="of all writers together")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one save of a writer to its next")
    options = parser.parse_args(arguments)
    rows, bad = [], 0
    notes = caveats(quick=options.saves < 1000)
    for place, every_s in itertools.product(("disk", "memory"), (0.0, options.every)):
        outcome = run_at(place, options.writers, options.saves, every_s)
        rows.append(row(place, outcome, options.writers, options.saves, every_s))
        print(rows[-1], flush=True)
        bad += outcome.bad
    notes += [
        f"Each save is of {BIG >> 10} KiB (linked) and {SMALL} bytes (packed), both rewritten in place, to a local"
        " datastore in memory.",
        "Writers, agent and uploader share the machine's cores; where all save without a pause, many processes"
        " could run on each core.",
    ]
    results.record("fleet", results.command(COMMAND), rows, notes)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

"""Zero torn files: a trainer rewrites what it saved as soon as ``save()`` returns, everywhere and in every way.

    python -m stress.torn [--rounds 20] [--largest-mib 64] [--filesystems disk tmpfs xfs btrfs]
                          [--modes alive killed thread] [--seed N]

Needs what the tests need, and root for the loop mounts. Each checkpoint in the store is compared with what was
on disk when its ``save()`` was called. Exit status 1 if one differs or did not get there.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from harness.files.filesystems import FILESYSTEMS, CannotMount, provided, why_not
from harness.files.rewriting import MODES, Rewriting, Tally, random_sizes
from harness.files.writers import WAYS
from harness.tasks.task import Task
from stress.bench import results

COMMAND = "python -m stress.torn"

#: A launcher takes so many restarts within its window for a crash loop; a new task every so many rounds starts over.
_ROUNDS_PER_TASK = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--largest-mib", type=int, default=64)
    parser.add_argument("--filesystems", nargs="+", default=FILESYSTEMS, choices=FILESYSTEMS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}; sizes 1 to {options.largest_mib} MiB")
    print(f"{'file system':12} {'agent':8} {'writer':6} {'way':10} saves commit torn failed  longest save, write (s)")
    rows: list[dict[str, Any]] = []
    for kind in options.filesystems:
        if reason := why_not(kind):
            print(f"{kind:12} left out: {reason}")
            continue
        with tempfile.TemporaryDirectory(prefix="async-ckpt-torn-") as base:
            try:
                with provided(kind, Path(base), size=8 << 30) as place:
                    rows.extend(
                        _run(kind, place, Path(base), mode, remote, options)
                        for mode, remote in itertools.product(options.modes, (False, True))
                    )
            except CannotMount as error:
                print(f"{kind:12} left out: {error}")
    bad = sum(row["torn"] + row["failed"] for row in rows)
    print("0 torn, 0 failed" if not bad else f"{bad} torn or failed")
    results.record("torn", results.command(COMMAND, options.seed), rows)
    return bool(bad)


def _run(kind: str, place: Path, base: Path, mode: str, remote: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: all ways of rewriting."""
    random_ = random.Random(options.seed)
    size = random_sizes(options.seed, 1 << 20, options.largest_mib << 20)
    total = {way: Tally() for way in WAYS}
    kills = 0
    for start in range(0, options.rounds, _ROUNDS_PER_TASK):
        with (
            tempfile.TemporaryDirectory(dir=base) as store,
            tempfile.TemporaryDirectory(dir=place) as folder,
            pytest.MonkeyPatch.context() as patch,
        ):
            task = Task(Path(store), patch).move_to(Path(folder))
            checkpointer = task.start(uploader="thread" if mode == "thread" else "process")
            with Rewriting(checkpointer, task.work, remote=remote, size=size) as rewriting:
                for _ in range(min(_ROUNDS_PER_TASK, options.rounds - start)):
                    rewriting.round(kill_at=random_.choice(WAYS) if mode == "killed" else "")
                rewriting.finish()
            kills += rewriting.kills
            for way, tally in rewriting.tally.items():
                total[way].add(tally)
            if left := task.close():
                print(f"left behind: {left}")
    for way, tally in total.items():
        print(
            f"{kind:12} {mode:8} {'other' if remote else 'same':6} {way:10} {tally.saves:5} {tally.committed:6} "
            f"{len(tally.torn):4} {len(tally.failed):6}  {tally.longest_save_s:.3f}, {tally.longest_write_s:.3f}",
            flush=True,
        )
        for line in tally.torn + tally.failed:
            print(f"    {line}", flush=True)
    tallies = total.values()
    return {
        "file system": kind, "agent": mode, "agents killed": kills, "written by": "another" if remote else "the task",
        "saves": sum(tally.saves for tally in tallies), "committed": sum(tally.committed for tally in tallies),
        "torn": sum(len(tally.torn) for tally in tallies), "failed": sum(len(tally.failed) for tally in tallies),
        "longest save, s": max(tally.longest_save_s for tally in tallies),
        "longest write, s": max(tally.longest_write_s for tally in tallies),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""No file system, no writer and no strategy commits what was not there: every kind of writer rewrites a checkpoint of
several files during and after its capture, on every kind of file system that can be had here.

    python -m stress.filesystems [--rounds 10] [--only ext4 overlay …] [--seed N]

Each checkpoint in the store is judged by what its bytes say about when they were written: it must be of one moment of
its ``save()``. Exit status 1 if one is not, or did not get there. Needs root, and what the tests need.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from harness.files.filesystem_matrix import KINDS, Tally, cells, run
from harness.files.filesystems import CannotMount, twice, why_not
from harness.tasks.task import Task
from stress.bench import results

COMMAND = "python -m stress.filesystems"

#: Names for the table.
_SHOWN = {
    "disk": "the temporary directory's (ext4)",
    "ext4-seconds": "ext4 whose times are whole seconds",
    "overlay": "overlayfs on ext4",
    "overlay-xfs": "overlayfs on xfs",
    "overlay-upper": "ext4, below an overlayfs",
    "fuse": "FUSE (bindfs)",
    "fuse-source": "ext4, behind a FUSE mount",
    "nfs4": "NFS 4.2 (nfsd over loopback)",
    "nfs3": "NFS 3 (nfsd over loopback)",
}


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
    new = {(row["kernel"], row["file system"]) for row in rows}
    recorded = (results.read("filesystems") or {"rows": []})["rows"]
    kept = [row for row in recorded if (row["kernel"], row["file system"]) not in new]
    results.record("filesystems", results.command(COMMAND, options.seed), [*kept, *rows])
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
        "kernel": ".".join(os.uname().release.split(".")[:2]),
        "file system": _SHOWN.get(kind, kind),
        "combinations": count,
        "saves": tally.saves,
        "wrong": len(tally.wrong),
        "failed": len(tally.failed),
        "refused": tally.refused,
        "files were": ", ".join(f"{how} {count * 100 // seen} %" for how, count in sorted(tally.how.items())),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Files that vanish from the spool of a running task, of every kind and in every phase.

    python -m stress.cleaners [--rounds 1]

Each cell of the table in ``harness/kills/cleaners.py`` is a real task with a real agent: what is saved must be stored,
whole, or be named as lost; nothing may hang. Prints how the cells ended; the first that is not as it must be ends it
with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from harness.kills.cleaners import KINDS, PHASES, run
from harness.tasks.task import Task
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.cleaners"


def cell(kind: str, phase: str) -> str:
    """How one cell ended: ``stored``, ``named`` what is lost; raises where it is neither."""
    with tempfile.TemporaryDirectory(prefix="async-ckpt-stress-") as base, pytest.MonkeyPatch.context() as patch:
        task = Task(Path(base), patch)
        try:
            lost = run(task, kind, phase)
        finally:
            left = task.close()
    assert not left, f"processes were left behind: {left}"
    return "named" if lost else "stored"


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    began, ends = time.monotonic(), {phase: Counter[str]() for phase in PHASES}
    for _ in range(options.rounds):
        for phase in PHASES:
            for kind in KINDS:
                try:
                    ends[phase][cell(kind, phase)] += 1
                except Exception:
                    traceback.print_exc()
                    print(f"{kind}, {phase}: neither stored nor named", flush=True)
                    return 1
            print(f"{time.monotonic() - began:7.1f} s: {phase}: {dict(ends[phase])}", flush=True)
    rows = [
        {"phase": phase, "all stored": ends[phase]["stored"], "lost, and named": ends[phase]["named"]}
        for phase in PHASES
    ]
    results.record("cleaners", results.command(COMMAND), rows, caveats(quick=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())

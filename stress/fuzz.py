"""Hostile frames at an agent's socket, and hostile checkpoints at the loader.

    python -m stress.fuzz [--frames 1000000] [--loads 100000] [--processes 2] [--seed N]

Needs what the tests need. Intruders send frames of every kind to a running agent, with descriptors and without, while
a well-behaved client saves and asks: the agent must not die, nor keep what it was sent, and every save is committed.
Then manifests, tars, listings, references and metadata that somebody else may have written are loaded: nothing may be
written outside of the destination, a load that fails leaves it as it was, and says so with an error of ours. Exit
status 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from stress.bench import results
from stress.bench.environment import memory_directory
from stress.fuzzing.loading import load_hostile
from stress.fuzzing.siege import besiege

COMMAND = "python -m stress.fuzz"
_NOTES = (
    "A frame counts when the agent answered what came after it, or ended the connection because of it. Memory: after a "
    "tenth of the frames, and at the end.",
    "Loads: manifests, tars, listings, references and metadata, in a directory with others around it that are looked "
    "at after each one.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--loads", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2, help="of intruders, and of loaders")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rows, violations = [], []
    if options.frames:
        with tempfile.TemporaryDirectory(prefix="async-ckpt-fuzz-") as base:
            siege = besiege(Path(base, "siege"), options.seed, options.frames, options.processes, _say)
        rows.append(siege.row())
        violations += siege.violations
    if options.loads:
        # Thousands of small files are made and removed: that would keep a disk busy for hours.
        with memory_directory() as base:
            loads = load_hostile(Path(base), options.seed, options.loads, options.processes, _say)
        rows.append(loads.row())
        violations += loads.violations
    for row in rows:
        print("; ".join(f"{name}: {value}" for name, value in row.items()))
    for violation in violations:
        print(f"VIOLATION {violation}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [{name: row.get(name, "") for name in columns} for row in rows]
    notes = [*_NOTES, *(f"Violation: {violation}" for violation in violations)]
    results.record("fuzz", results.command(COMMAND, options.seed), table, notes)
    return bool(violations)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

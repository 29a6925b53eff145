"""Machines that are taken away within seconds while checkpoints wait, some of which cannot be stored: many of them.

    python -m stress.preemptions [--count 200] [--side-by-side 4] [--seed N] [--one SEED]

What waits is drawn anew each time: how many, how large, which of them the store refuses, fails, never answers, takes
slowly, or whose files are torn or gone; the bandwidth, the seconds that are left, how the end is told, and the store
(on disk, or S3). Whatever fitted has to be durable by the end (``harness/kills/preemption.py`` says what that means),
the newest first, and whatever is not has to be named. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.kills.preemption import COMMIT_S, MUST_SHARE, draw, run
from stress.alone import run_alone
from stress.bench import results

COMMAND = "python -m stress.preemptions"
_LIMIT_S = 120.0


def one(seed: int) -> dict[str, Any]:
    """A single one, in this process."""
    case = draw(random.Random(seed))
    # What was killed may have left a child that still writes.
    folder = tempfile.TemporaryDirectory(prefix="preemption-", ignore_cleanup_errors=True)
    with folder as base, pytest.MonkeyPatch.context() as patch:
        outcome = run(case, Path(base), patch)
    return {"seed": seed, "case": asdict(case), **asdict(outcome)}


def _in_a_process(seed: int) -> dict[str, Any]:
    found, why = run_alone("stress.preemptions", seed, _LIMIT_S)
    return found if found is not None else {"seed": seed, "case": None, "must": [], "durable": {}, "problems": [why]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side-by-side", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--one", type=int)
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(one(options.one)))
        return 0
    print(f"seed {options.seed}", flush=True)
    figures: Counter[str] = Counter()
    bad = 0
    with ThreadPoolExecutor(options.side_by_side) as pool:
        for found in pool.map(_in_a_process, range(options.seed, options.seed + options.count)):
            case = found["case"] or {"sizes": {}, "faults": {}}
            figures["waited"] += len(case["sizes"])
            figures["could not be stored"] += len(case["faults"])
            figures["fitted"] += len(found["must"])
            figures["durable"] += len(found["durable"])
            if found["problems"]:
                bad += 1
                print(json.dumps(found), flush=True)
    rows = [{"preemptions": options.count, **figures, "with anything wrong": bad}]
    notes = [
        f"Fitted: bytes over bandwidth, {COMMIT_S:g} s for each commit, and what the newer ones that cannot be stored "
        f"may cost, come to at most {MUST_SHARE:.0%} of the time.",
    ]
    print(rows[0])
    results.record("preemptions", results.command(COMMAND, options.seed), rows, notes)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

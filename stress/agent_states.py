"""Agents and uploaders that die, are stopped, cannot be started or are slow, in every phase of a task.

    python -m stress.agent_states [--sequences 1000] [--lanes 3] [--seed N] [--one SEED]

Each sequence is a task of one to three attempts in a process of its own, whose troubles are drawn anew
(``harness/kills/agent_states.py``), while it starts, saves, flushes, drains. In the end every save is in the store,
with the content that was saved, or was named with a reason; each flush has ended within its limit. Exit status 1 if
not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.kills.agent_states import PHASES, STATES, run
from stress.alone import run_alone
from stress.bench import results

COMMAND = "python -m stress.agent_states"
_LIMIT_S = 300.0
_SUMS = ("attempts", "saves", "flushes", "failed_flushes", "named")


def one(seed: int) -> dict[str, Any]:
    """A single one, in this process."""
    with tempfile.TemporaryDirectory(prefix="states-") as base, pytest.MonkeyPatch.context() as patch:
        return {"seed": seed, **asdict(run(seed, Path(base), patch))}


def _in_a_process(seed: int) -> dict[str, Any]:
    found, why = run_alone("stress.agent_states", seed, _LIMIT_S)
    return found if found is not None else {"seed": seed, "happened": {}, "problems": [why]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--one", type=int)
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(one(options.one)))
        return 0
    print(f"seed {options.seed}", flush=True)
    begun = time.monotonic()
    sums: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    slowest_s, bad = 0.0, 0
    first = options.seed * 1_000_000
    with ThreadPoolExecutor(options.lanes) as pool:
        for found in pool.map(_in_a_process, range(first, first + options.sequences)):
            happened.update(found["happened"])
            slowest_s = max(slowest_s, found.get("slowest_save_s", 0.0))
            sums.update({name: found.get(name, 0) for name in _SUMS})
            if found["problems"]:
                bad += 1
                print(json.dumps(found), flush=True)
    rows = [
        {"state": state, **{phase: happened[f"{state} / {phase}"] for phase in PHASES}} for state in STATES
    ]  # fmt: skip
    notes = [
        f"{options.sequences} sequences, {sums['attempts']} attempts, {sums['saves']} saves, {sums['flushes']} "
        f"flushes, of which {sums['failed_flushes']} failed, within their limit: with anything wrong {bad}, not stored "
        f"but named {sums['named']}. The slowest save took {slowest_s:.1f} s, all {time.monotonic() - begun:.0f} s.",
    ]
    print(json.dumps(rows), notes[0], sep="\n")
    results.record("agent_states", results.command(COMMAND, options.seed), rows, notes)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

"""A gang on this machine that saves together, of which ranks are killed, in many rounds.

    python -m stress.gangs [--rounds 100] [--nodes 4] [--saves 20] [--seed N]

Each round is a run of a real flow with ``@parallel``, in which some rank's process, at random with its agent, is killed
with SIGKILL some time after it began, once or twice. Somebody looks at the store all the time: whatever is visible must
be whole. Each attempt must begin with the same checkpoint on all ranks. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness.kills.gang_kills import play
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.gangs"


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    figures: Counter[str] = Counter()
    wrong: list[str] = []
    began = time.monotonic()
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="async-ckpt-gangs-", ignore_cleanup_errors=True) as base:
            found = play(Path(base), f"{options.seed}.{number}", options.nodes, options.saves, figures)
        figures["rounds"] += 1
        wrong += [f"round {number} (seed {options.seed}.{number}): {what}" for what in found]
        for what in found:
            print(f"WRONG {what}", flush=True)
        print(f"{time.monotonic() - began:6.0f} s: {dict(figures)}, wrong {len(wrong)}", flush=True)
    rows = [{"what happened": what, "times": count} for what, count in sorted(figures.items())]
    rows += [{"what happened": "partial checkpoints, mixtures, attempts that did not end well", "times": len(wrong)}]
    notes = [*caveats(quick=False), f"{options.nodes} ranks, {options.saves} saves each."]
    results.record("gangs", results.command(COMMAND, options.seed), rows, [*notes, *wrong[:5]])
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

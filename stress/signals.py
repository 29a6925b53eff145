"""Tasks that real signals interrupt at random moments, in saves, flushes and loads.

    python -m stress.signals [--signals 5000] [--seed N] [--quick]

Handlers save, flush, load, raise, and end the process (``harness/kills/interrupted.py``). Nothing may hang, every
checkpoint that a save returned must be in the store at the end, as it was saved, and no handler may be another one
afterwards. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from harness.kills.interruptions import rounds
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.signals"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=5000, help="so many at least (default 5000)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--quick", action="store_true", help="200 signals")
    options = parser.parse_args(arguments)
    signals = 200 if options.quick else options.signals
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    figures: Counter[str] = Counter(hung=0)
    problems = rounds(signals, options.seed, figures)
    print("\n".join(problems), f"{time.monotonic() - began:.0f} s: {dict(figures)}", sep="\n")
    rows = [{**figures, "wrong": len(problems)}]
    if not problems:
        results.record("signals", results.command(COMMAND, options.seed), rows, caveats(quick=options.quick))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

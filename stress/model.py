"""Random lives of a task against a model, step by step: saves, crashes, retries, bad weather.

    python -m stress.model [--steps 10000] [--seed N] [--life 100]

Needs what the tests need. The steps, what is real in them and what must be true after each stand in
``harness/tasks/model.py``. At the first life that shows something else Hypothesis shrinks it, prints the shortest one
that still does, and the exit status is 1; with the same seed it is found again.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from harness.tasks.model import Model
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.model"

#: Lives between two lines of progress.
_LIVES = 10


def run(lives: int, steps: int, number: int) -> bool:
    """So many lives of so many steps; False, and the shortest is printed, if one is not as it must be."""
    seed(number)(Model)
    plan = settings(
        max_examples=lives, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    try:
        run_state_machine_as_test(Model, settings=plan)
    except Exception:
        traceback.print_exc()
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--life", type=int, default=100, help="steps of one life (default 100)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began, number, good = time.monotonic(), options.seed, True
    while good and Model.figures["steps"] < options.steps:
        good = run(_LIVES, options.life, number)
        number += 1
        print(f"{time.monotonic() - began:7.1f} s: {dict(Model.figures)}", flush=True)
    if good:
        rows = [{"what happened": what, "times": count} for what, count in sorted(Model.figures.items())]
        rows.append({"what happened": "violations", "times": 0})
        lives = f"Lives of {options.life} steps, {time.monotonic() - began:.0f} s."
        results.record("model", results.command(COMMAND, options.seed), rows, [*caveats(quick=False), lives])
    return not good


if __name__ == "__main__":
    sys.exit(main())

"""A training by torchrun, killed at random steps, ranks and moments: is its loss curve the uninterrupted one?

    python -m stress.ddp [--steps 200] [--every 5] [--kills 4] [--rounds 5] [--seed N] [--server]

Needs what the tests need, and torch (its wheel for CPUs is enough). ``examples/ddp_flow.py`` trains a model on two
ranks, once left alone, and then once a round with a rank killed in each of several attempts. Every loss of every
attempt is compared with the uninterrupted one's, float for float, and so is the model at the end. Exit status 1 if one
differs, if a kill did not come, or if a retry began with less than all ranks had saved.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.flow_runs import ddp
from harness.flow_runs.ddp import Kill, Training
from harness.flow_runs.metaflow_env import Workspace
from harness.s3.gated_s3 import GatedS3
from stress.bench import results
from stress.bench.environment import caveats, work_directory

COMMAND = "python -m stress.ddp"
#: As often the flow tries its step again.
MOST_KILLS = 4


def plan(chance: random.Random, count: int, steps: int, every: int) -> list[Kill]:
    """A kill for each of several attempts, each at a later step than the one before, so that it comes."""
    kills = []
    for step in sorted(chance.sample(range(every, steps + 1, every), count)):
        moment = chance.choice(ddp.MOMENTS)
        # Between two saves there is no other moment.
        kills.append(Kill(chance.randrange(ddp.RANKS), step - chance.randrange(every) * (moment == "forward"), moment))
    return kills


def row(number: int, kills: list[Kill], killed: Training, whole: Training, every: int) -> dict[str, Any]:
    """Its line of the table."""
    difference = ddp.largest_difference(killed, whole)
    began = killed.resumed_at[1:]
    return {
        "round": number, "steps": len(whole.losses[0]), "kills": len(kills),
        "killed (rank@step:moment)": ", ".join(map(str, kills)),
        "resumes": sum(step > 0 for step in began), "resumed after steps": ", ".join(map(str, began)),
        "began with less than all had saved": sum(
            step < kill.all_have_saved(every) for kill, step in zip(kills, began, strict=False)
        ),
        "losses compared": len(killed.lines) + sum(map(len, killed.losses)),
        "curves equal": killed.losses == whole.losses and difference == 0,
        "largest difference": difference,
        "same model": killed.weights == whole.weights,
    }  # fmt: skip


def failed(line: dict[str, Any], attempts: int) -> bool:
    """Whether a line of the table is not as it has to be."""
    good = line["curves equal"] and line["same model"] and not line["began with less than all had saved"]
    return not good or attempts != line["kills"] + 1


@contextlib.contextmanager
def world(base: Path, *, server: bool) -> Iterator[Workspace]:
    """Where the flows run."""
    with contextlib.ExitStack() as stack:
        settings = {}
        if server:
            (base / "s3").mkdir()
            settings = stack.enter_context(GatedS3(base / "s3")).new_bucket()
        workspace = Workspace(base / "world", settings)
        stack.callback(workspace.kill_leftovers)
        yield workspace


def run(options: argparse.Namespace, base: Path) -> tuple[list[dict[str, Any]], int]:
    """A line a round, and how many are bad."""
    chance, rows, bad = random.Random(options.seed), [], 0
    size = {"steps": options.steps, "every": options.every, "seed": options.seed}
    with world(base, server=options.server) as workspace:
        whole = ddp.train(workspace, base / "whole", **size)
        for number in range(1, options.rounds + 1):
            kills = plan(chance, options.kills, options.steps, options.every)
            killed = ddp.train(workspace, base / f"round-{number}", kills, **size)
            rows.append(row(number, kills, killed, whole, options.every))
            bad += failed(rows[-1], len(killed.resumed_at))
            print(rows[-1], flush=True)
        try:
            workspace.assert_clean()
        except AssertionError as error:
            print(f"left behind: {error}")
            bad += 1
    return rows, bad


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=5, help="steps from one save to the next")
    parser.add_argument("--kills", type=int, default=MOST_KILLS, choices=range(1, MOST_KILLS + 1), help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--server", action="store_true", help="to S3 instead of a directory")
    parser.add_argument("--quick", action="store_true", help="one round of few steps: to try the tool")
    options = parser.parse_args(arguments)
    if ddp.MISSING:
        sys.exit(ddp.MISSING)
    if options.quick:
        options.steps, options.rounds, options.kills = 20, 1, 2
    notes = caveats(quick=False)
    with work_directory() as base:
        rows, bad = run(options, Path(base))
    notes += [
        f"Two ranks, gloo, Adam, dropout, torch {metadata.version('torch')}; all ranks save together every "
        f"{options.every} steps, to {'S3' if options.server else 'a directory'}. Rank 0's part has the model and its "
        "optimizer, each rank's its random numbers and its place in its data.",
        "Losses compared: those of all attempts, steps that were taken again included, and the history in the "
        "checkpoints. With more than two ranks, gloo's sums may depend on how gradients are cut into buckets, which is "
        "a matter of torch.",
    ]
    print("\n".join(notes))
    results.record("ddp", results.command(COMMAND, options.seed), rows, notes)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

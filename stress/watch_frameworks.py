"""Real training frameworks, unchanged and with few checkpoints kept, watched with the default settings.

    python -m stress.watch_frameworks [--runs 1] [--count 8] [--seed N] [--pause 1.0] [--only hf,orbax] [--kill]

Orbax, Hugging Face's Trainer, Lightning, Keras, PyTorch's distributed checkpoints, TensorFlow, DeepSpeed's files and
pairs written in place, each keeping two and pausing for a second after each. Every checkpoint that the trainer finished
and that existed for a second must be committed once; each committed one is loaded from the store, compared with what
the trainer had finished, and loaded by the framework itself. ``--kill``: the trainer is killed at a random moment of
each run, and a second attempt goes on from what is there. Exit status 1 if one is missing, there twice, or half.

The frameworks are in the environment that ``ASYNC_CKPT_FRAMEWORKS_VENV`` names, or in one that pip makes (3 GB).
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from harness.flow_runs import frameworks
from harness.watches.framework_trainers import KINDS
from harness.watches.watched_frameworks import all_runs
from stress.bench import results

COMMAND = "python -m stress.watch_frameworks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between one and the next")
    parser.add_argument("--settle", type=float, help="seconds; the default settings without it")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    python = frameworks.find_or_make_frameworks()
    chance, rows = random.Random(options.seed), []
    for kind in options.only.split(","):
        rows.append(all_runs(python, kind, options, chance))
        print(rows[-1], flush=True)
    notes = [
        f"Each trainer saves {options.count} checkpoints a run, keeps the newest two and pauses for {options.pause:g} "
        "s after each; default settings (quiet for 30 s). What existed for 1 s after it was finished must be "
        "committed, once. Each committed one was loaded, compared byte by byte and read by the framework.",
    ]
    if options.kill:
        notes.append("Each run's trainer was killed at a random moment; a second attempt went on. What the killed one "
                     "wrote last may be half, and is left out unless it is known to be whole.")  # fmt: skip
    if options.only == ",".join(KINDS):
        section = "watch_frameworks_killed" if options.kill else "watch_frameworks"
        results.record(section, results.command(COMMAND, options.seed), rows, notes)
    return any(row["twice"] or row["half"] or (row["missing"] and not options.kill) for row in rows)


if __name__ == "__main__":
    sys.exit(main())

"""What an upload does to the training loop: ``python -m stress.bench.interference [--quick] [--torch]``.

A loop of pure Python and NumPy in a Metaflow task, one step about 6 ms, while nothing is uploaded, while our agent
uploads without an end (saves of 256 MiB, the next one as soon as the one before the last is in the store), the same
with ``uploader="thread"``, with a thread of boto3 in the process, and with the incumbent's ``save()`` every so many
steps. A step that saves contains the save. All use one discarding S3 server, in turns; once with a core free for them,
once with a second loop beside the first, so that both cores are busy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from . import results
from .environment import Package, caveats, ours, peer, work_directory
from .servers import Target
from .targets import SINK, counted_target
from .tasks import Task, has_torch, numpy_directory, task

COMMAND = "python -m stress.bench.interference"
ONE_FREE, BUSY = "one core free", "both cores busy"
_MIB = 1 << 20


@dataclass(frozen=True)
class Variant:
    """``uploads``: see ``flows/training.py``."""

    label: str
    package: Package
    uploads: str
    options: dict[str, Any]


def variants() -> tuple[Variant, ...]:
    mine = ours()
    return (
        Variant("none", mine, "none", {}),
        Variant("ours", mine, "saves", {}),
        Variant("ours, uploader='thread'", mine, "saves", {"uploader": "thread"}),
        Variant("boto3 in a thread", mine, "boto3", {}),
        Variant("peer", peer(), "every", {}),
    )


@dataclass(frozen=True)
class Load:
    """How long to train, and how much each save is."""

    steps: int
    every: int
    bytes: int


def row_of(variant: Variant, situation: str, work: str, load: Load, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One line: the medians of all runs' percentiles."""
    summaries = [results.summary(run["times"]) for run in runs]
    figures = {key: results.median([item[key] for item in summaries]) for key in ("p50_ms", "p99_ms", "max_ms")}
    total = results.median([run["total"] for run in runs])
    return {
        "loop": work, "situation": situation, "uploader": variant.label, "runs": len(runs), "steps": load.steps,
        **figures, "loop s": total, "upload MB/s": results.median([run["sent"] / run["total"] / 1e6 for run in runs]),
        "saves": int(results.median([run["saves"] for run in runs])),
    }  # fmt: skip


def measure(store: Target, work: str, load: Load, rounds: int, *, torch: bool) -> list[dict[str, Any]]:
    """All variants take turns in both situations, each in a task of its own, that lives until all are measured."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        tasks: list[tuple[Variant, Task]] = []
        for number, variant in enumerate(variants()):
            own = os.path.join(work, str(number))
            os.mkdir(own)
            trainer = task(variant.package, store, own, commands="training", options=variant.options)
            tasks.append((variant, stack.enter_context(trainer)))
        # The first one says how much work a step is: the same for all.
        amounts = [running.do("prepare", size=load.bytes, torch=torch) for _, running in tasks]
        for _ in range(rounds):
            for situation in (ONE_FREE, BUSY):
                for variant, running in tasks:
                    run = running.do("train", uploads=variant.uploads, steps=load.steps, every=load.every,
                                     busy=situation == BUSY, **amounts[0])  # fmt: skip
                    running.do("drain")
                    runs.setdefault((situation, variant.label), []).append(run)
    name = "torch" if torch else "NumPy"
    return [
        row_of(variant, situation, name, load, runs[situation, variant.label])
        for situation in (ONE_FREE, BUSY)
        for variant, _ in tasks
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of 300 steps each instead of 5 of 2,000")
    parser.add_argument("--rounds", type=int, help="runs of each (default 5)")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    load = Load(300, 100, 64 * _MIB) if options.quick else Load(2000, 250, 256 * _MIB)
    rows, notes = [], caveats(quick=options.quick)
    torch = has_torch(ours()) and has_torch(peer())
    for name in ("NumPy", "torch") if torch else ("NumPy",):
        with work_directory() as work, counted_target(SINK, work) as (store, _):
            # One thread of BLAS: the loop is meant to take one core.
            numpy = {"PYTHONPATH": numpy_directory(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            unpaced = {"METAFLOW_ASYNC_CKPT_PACE": "full"}  # For what a pace is worth see ``pace.py``.
            store = dataclasses.replace(store, environment=store.environment | numpy | unpaced)
            rows += measure(store, work, load, rounds, torch=name == "torch")
    for row in rows:
        print({key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    if not torch:
        notes.append("Without PyTorch: it is not installed in both environments.")
    notes += [
        f"A save is {load.bytes / _MIB:.0f} MiB; the incumbent saves every {load.every} steps.",
        "*upload MB/s* is over the whole loop. The server takes its share of the same cores.",
    ]
    results.record("interference", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

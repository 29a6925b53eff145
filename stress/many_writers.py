"""A task, its threads, its forked children and its subprocesses save at the same time, round after round.

    python -m stress.many_writers [--rounds 5] [--processes 4] [--forks 2] [--threads 2] [--saves 20]

Needs what the tests need. Exit status 1 if a save is missing, has another's content, or two have one version.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from harness.tasks.many_savers import Forked, Subprocess, Thread, as_stored, save_some
from harness.tasks.task import Task
from stress.bench import results

COMMAND = "python -m stress.many_writers"


def run_round(base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One round, a line of the table."""
    with pytest.MonkeyPatch.context() as patch:
        task = Task(base, patch)
        checkpointer = task.start()
        environment = task.environment(checkpointer)
        numbers = iter(range(1000))
        processes = [
            Subprocess(environment, task.work / f"p{n}", next(numbers), options.saves) for n in range(options.processes)
        ]
        for process in processes:
            process.ready()
        started = time.monotonic()
        forks = [Forked(checkpointer, task.work / f"f{n}", next(numbers), options.saves) for n in range(options.forks)]
        threads = [
            Thread(checkpointer, task.work / f"t{n}", next(numbers), options.saves) for n in range(options.threads)
        ]
        for process in processes:
            process.go()
        saved = save_some(checkpointer, task.work / "own", next(numbers), options.saves)
        for saver in (*threads, *forks, *processes):
            saved += saver.references()
        took = time.monotonic() - started
        checkpointer.flush(300)
        versions = [reference["version_id"] for reference in saved]
        committed = task.committed_versions()
        row = {
            "savers": 1 + options.processes + options.forks + options.threads, "saves": len(saved), "s": took,
            "committed": len(committed), "missing": len(set(versions) - set(committed)),
            "same version": len(versions) - len(set(versions)),
            "other content": sum(not as_stored(task.store.root, reference) for reference in saved),
        }  # fmt: skip
        print(row, flush=True)
        if left := task.close():
            print(f"left behind: {left}")
        return row


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--forks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--saves", type=int, default=20, help="of each saver")
    options = parser.parse_args()
    rows = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="async-ckpt-writers-") as base:
            rows.append(run_round(Path(base), options))
    results.record("many_writers", results.command(COMMAND), rows)
    return any(row["missing"] or row["same version"] or row["other content"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())

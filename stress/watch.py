"""An unmodified script that writes ``checkpoint-N/`` directories at random speeds, watched: each is committed once.

    python -m stress.watch [--count 200] [--settle 2] [--stall 3] [--seed N] [--server]

For each way of finishing one (nothing tells but quiet; renamed into place; a marker), with retention so that the disk
holds three. Every committed checkpoint is read back from the store and compared with what the script writes. Exit
status 1 if one is missing, there twice, or partial.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.watch import Watch, WatchOptions
from harness.common import log_lines
from harness.tasks.task import Task
from harness.watches import trainer
from stress.bench import results
from stress.s3_target import s3_target

COMMAND = "python -m stress.watch"
KEEP = 3
SIZE = 2 << 20
SLOWEST_S = 0.05
_SAMPLE_S = 0.2


def watched(task: Task, checkpointer: Checkpointer, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the script; a line of the table."""
    out = task.work / way
    most, over = 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not over.wait(_SAMPLE_S):
            most = max(most, sum(name.startswith("checkpoint-") for name in os.listdir(out)) if out.exists() else 0)

    sampler = threading.Thread(target=sample)
    sampler.start()
    began, cpu = time.monotonic(), time.process_time()
    given = WatchOptions(settle=options.settle, done="DONE" if way == "marker" else None, keep=KEEP, name=way)
    script = [sys.executable, trainer.__file__, str(out), str(options.count), "--way", way, "--size", str(SIZE)]
    script += ["--seed", str(options.seed), "--slowest", str(SLOWEST_S), "--stall", str(options.stall)]
    with log_lines.collected() as lines, Watch(checkpointer, out, given, Config.from_env()):
        subprocess.run(script, check=True)
        wrote = time.monotonic() - began
    checkpointer.flush(600)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    over.set()
    sampler.join()
    committed = [data for data in checkpointer.list(name=way) if data["state"] == "COMMITTED"]
    times = Counter(data["metadata"]["path"] for data in committed)
    partial = [data["metadata"]["path"] for data in committed if not is_whole(checkpointer, data, options.seed)]
    missing = [n for n in range(1, options.count + 1) if f"checkpoint-{n}" not in times]
    for line in lines:
        if "is saved as" not in line and "is removed" not in line:
            print(f"  {way}: {line}", flush=True)
    return {
        "finished by": {"plain": "quiet", "rename": "rename", "marker": "marker"}[way], "written": options.count,
        "committed": len(committed), "missing": len(missing), "twice": sum(count > 1 for count in times.values()),
        "partial": len(partial), "most on the disk": most, "script, s": wrote, "all in the store, s": took,
        "CPU of the watch and saves, s": cpu,
    }  # fmt: skip


def is_whole(checkpointer: Checkpointer, data: dict[str, Any], seed: int) -> bool:
    """Whether the store gives back what the script writes."""
    with tempfile.TemporaryDirectory() as folder:
        checkpointer.load(data, folder)
        number = int(data["metadata"]["path"].rpartition("-")[2])
        found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        found.pop("DONE", None)
        return found == trainer.expected(seed, number, SIZE)


def run(options: argparse.Namespace, base: Path, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A line for each way."""

    def all_ways(task: Task) -> list[dict[str, Any]]:
        checkpointer = task.start()
        rows = []
        for way in ("plain", "rename", "marker"):
            rows.append(watched(task, checkpointer, way, options))
            print(rows[-1], flush=True)
        if left := task.close():
            print(f"left behind: {left}")
        return rows

    if not options.server:
        return all_ways(Task(base, patch))
    with s3_target(base, patch) as (spec, _):
        task = Task(base, patch)
        task.store = spec
        return all_ways(task)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--settle", type=float, default=2.0, help="seconds")
    parser.add_argument("--stall", type=float, default=3.0, help="seconds that one in twenty stalls with a file open")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--server", action="store_true", help="to S3 instead of a directory")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="watch-") as base, pytest.MonkeyPatch.context() as patch:
        rows = run(options, Path(base), patch)
    notes = [
        f"Four files of up to {SIZE >> 20} MiB each, in chunks with pauses of up to {SLOWEST_S * 1000:.0f} ms; one "
        f"checkpoint in twenty stalls for {options.stall:g} s in the middle of a file. settle={options.settle:g} s, "
        f"keep={KEEP}; to {'S3' if options.server else 'a directory'}.",
        "Checkpoints follow one another without a pause, so while one must be quiet, others wait on the disk as well.",
    ]
    print("\n".join(notes))
    results.record("watch_s3" if options.server else "watch", results.command(COMMAND, options.seed), rows, notes)
    return any(row["missing"] or row["twice"] or row["partial"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())

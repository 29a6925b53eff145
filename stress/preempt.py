"""A machine that is taken away in 30 s, ten saves that wait, and a network that takes three of them in that time.

    python -m stress.preempt [--seconds 30] [--saves 10] [--fit 3]

The task saves as fast as it can over a limited bandwidth. Then it is told to end (SIGTERM, as Metaflow's monitor of
spot instances sends it), and at the end of the time everything is killed, as the machine is gone. Shown: what is in the
store by then, when it was, and what the log says of the rest. Exit status 1 if the newest that fits is not among them,
or a partial checkpoint is visible.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from harness.files.writers import content
from harness.tasks.task import Task, kill
from stress.bench import results
from stress.s3_target import s3_target

COMMAND = "python -m stress.preempt"
SIZE = 24 << 20

_TASK = """
import json, os, sys, time
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.termination import Termination
from harness.tasks.task import TASK
from harness.files.writers import content
root, spec, work, count, size = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
def say(line): print(f"{time.time():.2f} {line}", flush=True)
config = Config.from_env()
write_lines_with(say)
checkpointer = Checkpointer.start(root, TASK, StoreSpec.from_json(spec), config, uploader="process")
Termination(checkpointer, config.termination_grace_s).install()
for number in range(count):
    with open(work + "/new", "wb") as file:
        file.write(content(number, size))
    os.rename(work + "/new", work + "/weights")
    checkpointer.save(work, metadata={"number": number})
    if number == 0:
        checkpointer.wait("0.mfchckpt.0", 120)  # So that the rate is known.
say("saved")
while True:
    time.sleep(0.01)
"""


def visible(folder: Path) -> dict[int, float]:
    """Versions whose metadata is in the store, and when it came there."""
    found = {}
    for path in folder.glob("*.metadata"):
        with contextlib.suppress(ValueError, OSError):
            found[int(path.name.split(".")[2])] = path.stat().st_mtime
    return found


def run(
    options: argparse.Namespace, base: Path, patch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Rows, notes, and how much went wrong."""
    task = Task(base, patch)
    # A bandwidth that takes so many, and half of one more, in the seconds there are.
    rate = int(SIZE * (options.fit + 0.5) / options.seconds)
    task.set(max_bandwidth_bytes_s=rate, termination_grace_s=options.seconds, part_bytes=5 << 20)
    with s3_target(base, patch) as (spec, objects):
        arguments = [task.root, json.dumps(spec.to_json()), str(task.work), str(options.saves + 1), str(SIZE)]
        command = [sys.executable, "-c", _TASK, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        lines = []
        while not (line := process.stdout.readline()).endswith("saved\n"):
            assert line, "the task failed"
            lines.append(line.strip())
        told = time.time()
        process.send_signal(signal.SIGTERM)
        os.set_blocking(process.stdout.fileno(), False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(options.seconds)
        took = time.time() - told
        time.sleep(max(told + options.seconds - time.time(), 0))
        for pid in [process.pid, *task.processes()]:
            kill(pid)
        process.wait()
        rest = process.stdout.read() or ""
        lines += rest.splitlines()
        folder = objects / task.info.task_folder
        found = visible(folder)
        partial = 0
        for path in folder.glob("*.metadata"):
            reference = json.loads(path.read_bytes())
            data = objects / reference["key"] / "weights"
            partial += not data.exists() or data.read_bytes() != content(reference["metadata"]["number"], SIZE)
    rows = [
        {"version": version, "durable after, s": f"{found[version] - told:.1f}" if version in found else "given up"}
        for version in range(options.saves, 0, -1)
    ]
    said = [line.split(" ", 1)[1] for line in lines if "given up" in line or "store" in line or "SIGTERM" in line]
    notes = [
        f"{options.saves} saves of {SIZE >> 20} MiB wait, at {rate / 1e6:.1f} MB/s; {options.seconds:g} s are left.",
        f"The task ended {took:.1f} s after the SIGTERM, with {process.returncode}.",
        f"Partial checkpoints visible: {partial}.",
        *[f"Log: {line}" for line in said],
    ]
    return rows, notes, partial + (options.saves not in found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--fit", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="preempt-") as base, pytest.MonkeyPatch.context() as patch:
        rows, notes, bad = run(options, Path(base), patch)
    for row in rows:
        print(row)
    print("\n".join(notes))
    results.record("preempt", results.command(COMMAND), rows, notes)
    return bad


if __name__ == "__main__":
    sys.exit(main())

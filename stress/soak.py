"""A save a second by three writers for an hour: what the agent and the spool need must not grow.

    python -m stress.soak [--minutes 60] [--every 1.0] [--server]

The task, a thread of it and a subprocess save in turns: a linked file, rewritten in place each time, and a packed one.
Samples are taken of the agent's and the uploader's memory, descriptors and threads, of the task's, and of what lies in
the spool. ``--server``: to S3 (rclone's server) instead of a directory. Exit status 1 if a save is missing, or if
something grew: the last sixth of the samples beside the second one (the first warms up).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.errors import CheckpointError
from async_ckpt.task.checkpointer import Checkpointer
from harness.files.writers import content
from harness.tasks.task import Task, agent_pid
from stress.bench import results
from stress.s3_target import s3_target

COMMAND = "python -m stress.soak"
BIG, SMALL = 300 << 10, 100
WRITERS = 3

#: A figure may end so much higher than it began: a share of it, and so many units.
_TOLERANCE = {"MiB": (0.10, 3.0), "descriptors": (0.0, 4.0), "threads": (0.0, 4.0), "files": (0.0, 30.0)}

_SUBPROCESS = """
import sys
from pathlib import Path
from async_ckpt.task.checkpointer import Checkpointer
from stress.soak import write
checkpointer, folder = Checkpointer.from_environment(), Path(sys.argv[1])
for line in sys.stdin:
    write(folder, int(line))
    checkpointer.save(folder, name="subprocess", metadata={"number": int(line)})
    print(line, end="", flush=True)
"""


def write(folder: Path, number: int) -> None:
    """New content, in place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(content(number, BIG))
    (folder / "step").write_bytes(content(number, SMALL))


def process_facts(pid: int, label: str) -> dict[str, float]:
    """Resident memory in MiB, descriptors and threads of a process; nothing if it is gone."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return {
            f"{label} MiB": int(fields["VmRSS"].split()[0]) / 1024,
            f"{label} descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            f"{label} threads": int(fields["Threads"]),
        }
    return {}


def sample(checkpointer: Checkpointer, began: float) -> dict[str, float]:
    """What everything needs now."""
    found = {"minutes": (time.monotonic() - began) / 60}
    with contextlib.suppress(CheckpointError):
        status = checkpointer.status()
        found |= {"pending": status["pending"], "leases": status["leases"]}
        if status["uploader_pid"]:
            found |= process_facts(status["uploader_pid"], "uploader")
    found |= process_facts(agent_pid(checkpointer), "agent") | process_facts(os.getpid(), "task")
    directory = checkpointer.spool.directory
    found["spool files"] = sum(len(names) for _, _, names in os.walk(directory))
    found["journal MiB"] = os.path.getsize(os.path.join(directory, "journal")) / (1 << 20)
    return found


@contextlib.contextmanager
def soaked(base: Path, server: bool, patch: pytest.MonkeyPatch) -> Iterator[Task]:
    """The task, whose store is a directory or S3."""
    if not server:
        yield Task(base, patch)
        return
    # Before the task, whose processes are told by their environment from others.
    with s3_target(base, patch) as (spec, _):
        task = Task(base, patch)
        task.store = spec
        yield task


def run(options: argparse.Namespace) -> tuple[list[dict[str, float]], int, list[float]]:
    """Samples, saves that went wrong, and the seconds in each ``save()`` of the task and its thread."""
    samples: list[dict[str, float]] = []
    blocked: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as base,
        pytest.MonkeyPatch.context() as patch,
        soaked(Path(base), options.server, patch) as task,
    ):
        checkpointer = task.start()
        writer = subprocess.Popen(
            [sys.executable, "-c", _SUBPROCESS, str(task.work / "subprocess")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=task.environment(checkpointer),
        )  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None

        def save(number: int, name: str) -> None:
            write(task.work / name, number)
            started = time.perf_counter()
            checkpointer.save(task.work / name, name=name, metadata={"number": number})
            blocked.append(time.perf_counter() - started)

        began = time.monotonic()
        number = 0
        while (now := time.monotonic()) < began + options.minutes * 60:
            if number % 3 == 0:
                save(number, "task")
            elif number % 3 == 1:
                thread = threading.Thread(target=save, args=(number, "thread"))
                thread.start()
                thread.join()
            else:
                writer.stdin.write(f"{number}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == f"{number}\n", "the subprocess failed"
            number += 1
            if number % max(int(10 / options.every), 1) == 0:
                samples.append(sample(checkpointer, began))
            time.sleep(max(began + number * options.every - time.monotonic(), 0) if now else 0)
        writer.communicate()
        checkpointer.flush(300)
        samples.append(sample(checkpointer, began))
        committed = checkpointer.list()
        bad = number - sum(item["state"] == "COMMITTED" for item in committed)
        bad += len({item["metadata"]["number"] for item in committed} ^ set(range(number)))
        if left := task.close():
            print(f"left behind: {left}")
            bad += 1
    return samples, bad, blocked


def rows_of(samples: list[dict[str, float]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A line for each figure, and what grew."""
    sixth = max(len(samples) // 6, 1)
    rows, grown = [], []
    for key in dict.fromkeys(key for item in samples for key in item if key != "minutes"):
        early = [item[key] for item in samples[sixth : 2 * sixth] if key in item]
        late = [item[key] for item in samples[-sixth:] if key in item]
        if not early or not late:
            continue
        first, last = results.median(early), results.median(late)
        share, units = _TOLERANCE.get(key.split()[-1], (0.0, 30.0))
        # It has a line for each save, and the lists of what is committed grow with it: said, not judged.
        flat = key == "journal MiB" or last <= first * (1 + share) + units
        rows.append({"figure": key, "after a sixth": float(first), "at the end": float(last), "flat": flat,
                     "most": float(max(item.get(key, 0.0) for item in samples))})  # fmt: skip
        if not flat:
            grown.append(key)
    return rows, grown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one save to the next")
    parser.add_argument("--server", action="store_true", help="to S3 instead of a directory")
    options = parser.parse_args(arguments)
    samples, bad, blocked = run(options)
    rows, grown = rows_of(samples)
    for row in rows:
        print({key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()})
    p50, p99 = (results.percentile(blocked, share) * 1000 for share in (0.5, 0.99))
    notes = [
        f"{options.minutes:g} minutes, a save every {options.every:g} s by {WRITERS} writers in turns, to "
        f"{'S3' if options.server else 'a directory'}.",
        f"Missing or wrong: {bad}; grown: {', '.join(grown) or 'nothing'}.",
        f"save() in the task: p50 {p50:.2f} ms, p99 {p99:.2f} ms.",
        "The journal has a line of some hundred bytes for each save of the running attempt.",
    ]
    print("\n".join(notes))
    results.record("soak", results.command(COMMAND), rows, notes, samples=samples)
    return bool(bad or grown)


if __name__ == "__main__":
    sys.exit(main())

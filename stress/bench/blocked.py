"""How long save() blocks while the disk writes back what was just written: ``python -m stress.bench.blocked``.

A trainer writes its files anew, has the kernel begin to write them to the disk, and saves at once: the moment in which
system calls take longest, as they wait for the file system's journal. Beside it, in turns and in the same moment, stand
the system calls that a capture cannot do without: for each file a link, an open, a lease; then a record that is written
and renamed. Which of them takes how long is told as well, so that a slow save can be put down to one of them.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer

from . import results
from .environment import caveats, work_directory

COMMAND = "python -m stress.bench.blocked"

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_PIECE = os.urandom(8 * _MIB)
_SYNC_FILE_RANGE_WRITE = 2
_RECORD = b"x" * 1000

_sync_file_range = ctypes.CDLL(None).sync_file_range


@dataclass(frozen=True)
class Case:
    """``count`` files of ``size`` bytes, saved ``n`` times."""

    label: str
    count: int
    size: int
    n: int


#: Measures one case, and returns its rows.
Measure = Callable[[Case], list[dict[str, Any]]]

CASES = (
    Case("1 x 1 MiB", 1, _MIB, 300),
    Case("1 x 64 MiB", 1, 64 * _MIB, 200),
    Case("1 x 1 GiB", 1, _GIB, 100),
    Case("1 x 4 GiB", 1, 4 * _GIB, 100),
    Case("100 x 1 MiB", 100, _MIB, 100),
    Case("1,000 x 64 KiB", 1000, 64 * _KIB, 100),
)


def write(directory: str, case: Case) -> None:
    """Write all files to a new directory, and have the disk begin with them."""
    os.mkdir(directory)
    for index in range(case.count):
        fd = os.open(os.path.join(directory, f"{index}.bin"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            left = case.size
            while left:
                left -= os.write(fd, memoryview(_PIECE)[: min(left, len(_PIECE))])
            _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(fd)


def bare(directory: str, folder: str) -> dict[str, float]:
    """The system calls of a capture by links, without anything around them; seconds of each kind."""
    took = dict.fromkeys(("mkdir", "link", "open", "lease", "record", "rename"), 0.0)
    fds = []
    before = now = time.perf_counter()

    def ended(name: str) -> None:
        nonlocal now
        took[name] += -now + (now := time.perf_counter())

    links = os.path.join(folder, "links")
    os.mkdir(links)
    ended("mkdir")
    for name in os.listdir(directory):
        target = os.path.join(links, name)
        os.link(os.path.join(directory, name), target)
        ended("link")
        fds.append(os.open(target, os.O_RDONLY | os.O_CLOEXEC))
        ended("open")
        fcntl.fcntl(fds[-1], fcntl.F_SETLEASE, fcntl.F_RDLCK)
        ended("lease")
    record = os.path.join(folder, "record")
    fd = os.open(f"{record}.tmp", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, _RECORD)
    os.close(fd)
    ended("record")
    os.rename(f"{record}.tmp", record)
    ended("rename")
    took["all"] = now - before
    for fd in fds:
        os.close(fd)
    shutil.rmtree(links)
    os.unlink(record)
    return took


def start(work: str, name: str) -> Checkpointer:
    scope, identifier = layout.scope_of("user:bench"), layout.step_identifier("start")
    task = layout.TaskInfo("Bench", "1", "start", name, 0, scope, identifier)
    store = StoreSpec("local", os.path.join(work, "store"))
    config = replace(Config.from_env(), local_fsync=False)  # The disk is to have the trainer's files to write.
    return Checkpointer.start(os.path.join(work, "spools"), task, store, config, uploader="process")


def measure(case: Case) -> list[dict[str, Any]]:
    saves: list[float] = []
    calls: list[dict[str, float]] = []
    with work_directory() as work:
        checkpointer = start(work, "blocked")
        try:
            first = os.path.join(work, "first")  # It waits until the agent has asked the store, and is not counted.
            write(first, case)
            checkpointer.save(first)
            checkpointer.flush()
            shutil.rmtree(first)
            for number in range(case.n):
                for way in ("save", "bare") if number % 2 else ("bare", "save"):
                    directory = os.path.join(work, f"files-{number}")
                    write(directory, case)
                    if way == "save":
                        before = time.perf_counter()
                        checkpointer.save(directory)
                        saves.append(time.perf_counter() - before)
                        checkpointer.flush()
                    else:
                        calls.append(bare(directory, work))
                    shutil.rmtree(directory)
                shutil.rmtree(os.path.join(work, "store"), ignore_errors=True)
        finally:
            checkpointer.close(clean=True)
    facts = {"case": case.label, "files": case.count, "bytes": case.count * case.size}
    alone = [took["all"] for took in calls]
    rows = [{**facts, "what": "save()", **results.summary(saves)}, {**facts, "what": "all", **results.summary(alone)}]
    rows += [
        {**facts, "what": name, **results.summary([took[name] for took in calls])} for name in calls[0] if name != "all"
    ]
    return rows


def run(
    command: str, description: str | None, section: str, cases: Sequence[Case], measure: Measure,
    arguments: list[str] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure the cases that were asked for, show them, and record them as a section. Returns its rows."""
    parser = argparse.ArgumentParser(prog=command, description=description)
    parser.add_argument("--quick", action="store_true", help="10 samples of each kind")
    labels = ", ".join(case.label for case in cases)
    parser.add_argument("--case", action="append", default=[], help=f"only this one (may be repeated), of {labels}")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    notes = caveats(quick=options.quick)
    for case in cases:
        if options.case and case.label not in options.case:
            continue
        more = measure(replace(case, n=10) if options.quick else case)
        rows += more
        for row in more:
            figures = f"p50 {row['p50_ms']:8.2f} p99 {row['p99_ms']:8.2f} ms, n {row['n']}"
            print(f"{row['case']:15} {row['what']:25} {figures}", flush=True)
    results.record(section, results.command(command), rows, notes)
    return rows


def main(arguments: list[str] | None = None) -> None:
    run(COMMAND, __doc__, "blocked", CASES, measure, arguments)


if __name__ == "__main__":
    main()

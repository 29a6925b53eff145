"""How long ``open(path, "wb")`` is held after ``save()``: ``python -m stress.bench.in_place [--quick] [--case LABEL]``.

A trainer writes one file over itself again and again, saves it, and opens it anew: at once, or after as long as a plain
copy of the file takes. Beside it, in turns: the trainer makes that plain copy itself, and opens the file without a
save. An agent knows of such a trainer from its second save on, so the first ones are not counted.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from async_ckpt.system.files import copy_range
from async_ckpt.task.checkpointer import Checkpointer

from . import results
from .aims import Aim
from .blocked import CASES, Case, run, start
from .environment import work_directory

COMMAND = "python -m stress.bench.in_place"
ALONE, COPY, AT_ONCE, LATER = "open without a save", "plain copy", "open at once", "open a copy's time later"
HELD_RATIO = 1.2
#: Below this, in milliseconds, nobody is held: two threads of two processes have to run.
NOT_HELD_MS = 1.0
_PIECE = memoryview(os.urandom(8 << 20))
_LEARNT_AFTER = 2

TEXT = """A trainer rewrites one file in place and saves it, without Metaflow, to the local store on the same disk.
*plain copy*: the trainer copies the file itself, with the system call that the agent uses. *open*: `open(path, "wb")`,
which truncates the file, so that it takes its time without a save as well."""


def rewrite(path: str, size: int) -> float:
    """Open a file for writing, and write it. Returns the seconds in ``open``."""
    before = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    held = time.perf_counter() - before
    try:
        while size:
            size -= os.write(fd, _PIECE[: min(size, len(_PIECE))])
    finally:
        os.close(fd)
    return held


def plain_copy(path: str, size: int) -> float:
    """Seconds to copy a file beside itself; the copy is removed."""
    target = f"{path}.copy"
    before = time.perf_counter()
    source_fd, fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        done = copy_range(source_fd, fd, size)
        took = time.perf_counter() - before
    finally:
        os.close(source_fd)
        os.close(fd)
        os.unlink(target)
    if done != size:
        raise RuntimeError(f"{path} has {done} bytes, not {size}")
    return took


def round_of(checkpointer: Checkpointer, path: str, case: Case, took: dict[str, list[float]]) -> None:
    """One sample of each kind, each right after the file was written. What is held is the next rewrite's open.

    All that was written before is on the disk: else whoever comes later pays for those before.
    """
    os.sync()
    rewrite(path, case.size)
    took[COPY].append(plain_copy(path, case.size))
    took[ALONE].append(rewrite(path, case.size))
    for what in (AT_ONCE, LATER):
        os.sync()
        rewrite(path, case.size)
        checkpointer.save(path)
        if what == LATER:
            time.sleep(results.median(took[COPY]))
        took[what].append(rewrite(path, case.size))
        checkpointer.flush()


def measure(case: Case) -> list[dict[str, Any]]:
    took: dict[str, list[float]] = {what: [] for what in (COPY, ALONE, AT_ONCE, LATER)}
    with work_directory() as work:
        path = os.path.join(work, "weights.bin")
        rewrite(path, case.size)
        checkpointer = start(work, "in-place")
        try:
            for number in range(_LEARNT_AFTER + case.n):
                if number == _LEARNT_AFTER:
                    took = {what: [] for what in took}
                round_of(checkpointer, path, case, took)
                shutil.rmtree(os.path.join(work, "store"))
        finally:
            checkpointer.close(clean=True)
    return [
        {"case": case.label, "what": what, "bytes": case.size, **results.summary(seconds)}
        for what, seconds in took.items()
    ]


def of_in_place(rows: list[dict[str, Any]]) -> list[Aim]:
    """Aims for opens after a save; ``rows`` as recorded by this program."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        p50 = {row["what"]: row["p50_ms"] for row in rows if row["case"] == case}
        held, later = (max(p50[what] - p50[ALONE], 0) for what in (AT_ONCE, LATER))
        ratio = held / p50[COPY]
        text = f"open('wb') right after save() is held at most {HELD_RATIO:g} x a plain copy, {case}"
        found.append(Aim(text, ratio <= HELD_RATIO, f"{ratio:.2f} x: {held:.1f} ms, the copy {p50[COPY]:.1f} ms"))
        text = f"open('wb') a copy's time after save() is not held, {case}"
        found.append(Aim(text, later <= NOT_HELD_MS, f"{later:.1f} ms"))
    return found


def main(arguments: list[str] | None = None) -> None:
    cases = [case for case in CASES if case.count == 1]
    for aim in of_in_place(run(COMMAND, __doc__, "in_place_copy", cases, measure, arguments)):
        print(aim)


if __name__ == "__main__":
    main()

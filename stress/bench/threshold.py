"""Below which size a copy is cheaper than a link and a lease: ``python -m stress.bench.threshold [--quick]``.

The same 100 files are saved with every file packed (copied into one file) and with every file linked, in turns
(``pack_below_bytes`` at both ends), without Metaflow, on the local store. Then the trainer rewrites them all in place:
what it pays for a lease comes there.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from typing import Any

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task.checkpointer import Checkpointer

from . import results
from .environment import caveats, work_directory

COMMAND = "python -m stress.bench.threshold"
FILES = 100
SIZES = tuple(4096 << step for step in range(11))


def start(work: str, name: str, config: Config) -> Checkpointer:
    scope, identifier = layout.scope_of("user:bench"), layout.step_identifier("start")
    task = layout.TaskInfo("Bench", "1", "start", name, 0, scope, identifier)
    store = StoreSpec("local", os.path.join(work, "store"))
    return Checkpointer.start(os.path.join(work, "spools"), task, store, config, uploader="process")


def rewrite(directory: str, content: bytes, *, in_place: bool) -> float:
    """Write all files anew. Returns the seconds spent in ``open``."""
    held = 0.0
    for index in range(FILES):
        path = os.path.join(directory, f"{index}.bin")
        written = path if in_place else f"{path}.tmp"
        before = time.perf_counter()
        file = open(written, "wb", buffering=0)  # noqa: SIM115 - timed
        held += time.perf_counter() - before
        with file:
            file.write(content)
        if not in_place:
            os.rename(written, path)
    return held


def measure(size: int, rounds: int) -> dict[str, Any]:
    with work_directory() as work:
        directory, content = os.path.join(work, "files"), os.urandom(size)
        os.mkdir(directory)
        ways = {
            "pack": start(work, "pack", replace(Config.from_env(), pack_below_bytes=1 << 62)),
            "link": start(work, "link", replace(Config.from_env(), pack_below_bytes=0)),
        }
        saves: dict[str, list[float]] = {way: [] for way in ways}
        opens: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, checkpointer in ways.items():
                rewrite(directory, content, in_place=False)
                before = time.perf_counter()
                checkpointer.save(directory)
                saves[way].append(time.perf_counter() - before)
                opens[way].append(rewrite(directory, content, in_place=True))
                checkpointer.flush()
        for checkpointer in ways.values():
            checkpointer.close(clean=True)
    row: dict[str, Any] = {"bytes": size, "files": FILES, "n": rounds}
    for way in ways:
        row[f"{way}_save_ms"] = results.median(saves[way]) * 1000
        row[f"{way}_open_ms"] = results.median(opens[way]) * 1000
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 saves of each kind and size instead of 30")
    options = parser.parse_args(arguments)
    rows, notes = [], caveats(quick=options.quick)
    for size in SIZES:
        rows.append(measure(size, 5 if options.quick else 30))
        print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    notes += [f"The default of `pack_below_bytes` is {Config().pack_below_bytes >> 10} KiB."]
    results.record("threshold", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

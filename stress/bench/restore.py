"""How long a restore takes: ``python -m stress.bench.restore [--quick]``.

1 GiB in one file and 1,000 files of 64 KiB, saved by a Metaflow task and loaded by it into a new directory: while the
checkpoint still waits on this machine (the uploaders are held), from S3, from the local datastore; the incumbent the
same way, in turns. All of it was just written, so what a disk has is read from memory.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import results
from .environment import available_memory, caveats, ours, peer, touch_memory, work_directory
from .servers import Target, target
from .tasks import Task, task

COMMAND = "python -m stress.bench.restore"
STORES = ("s3", "local")
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

CASES: dict[str, dict[str, int]] = {
    "1 x 1 GiB": {"model.bin": _GIB},
    "1,000 x 64 KiB": {f"{number // 100}/{number}.bin": 64 * _KIB for number in range(1000)},
}
QUICK: dict[str, dict[str, int]] = {
    "1 x 128 MiB": {"model.bin": 128 * _MIB},
    "100 x 64 KiB": {f"{number}.bin": 64 * _KIB for number in range(100)},
}


def loads(running: Task, count: int) -> list[float]:
    return [running.do("load")["seconds"] for _ in range(count)]


def measure(store: Target, work: str, cases: dict[str, dict[str, int]], rounds: int) -> list[dict[str, Any]]:
    rows = []
    with task(ours(), store, work) as mine, task(peer(), store, work) as theirs:
        for label, files in cases.items():
            seconds: dict[str, list[float]] = {"spool": [], store.name: [], "peer": []}
            for number in range(rounds + 1):
                for running in (mine, theirs):
                    running.do("write", files=files, folder=label)
                mine.do("save", folder=label)
                mine.do("drain")  # Now there is an uploader that can be held.
                mine.do("hold")
                mine.do("write", files=files, folder=label)
                mine.do("save", folder=label)
                held = loads(mine, 1)
                mine.do("release")
                mine.do("drain")
                theirs.do("save", folder=label)
                if number:  # The first round imports and connects.
                    seconds["spool"] += held
                    seconds[store.name] += loads(mine, 1)
                    seconds["peer"] += loads(theirs, 1)
                else:
                    loads(mine, 1)
                    loads(theirs, 1)
                store.empty()
            rows.append(row_of(store.name, label, sum(files.values()), seconds))
            print(rows[-1], flush=True)
    return rows


def row_of(store: str, label: str, size: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    spool, stored, theirs = (results.median(seconds[key]) for key in ("spool", store, "peer"))
    return {
        "store": store, "files x size": label, "n": len(seconds["peer"]),
        "ours from the spool_ms": spool * 1000, "ours from the store_ms": stored * 1000, "peer_ms": theirs * 1000,
        "ours from the store, MB/s": size / stored / 1e6, "peer, MB/s": size / theirs / 1e6,
        "peer / ours (spool)": f"{theirs / spool:,.1f} x", "peer / ours (store)": f"{theirs / stored:,.1f} x",
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small checkpoints, one load of each instead of 7")
    parser.add_argument("--store", choices=STORES, action="append", help="default: both")
    options = parser.parse_args(arguments)
    rows, notes = [], caveats(quick=options.quick)
    touch_memory(available_memory() // 5)
    for name in options.store or STORES:
        with work_directory() as work, target(name, work) as store:
            rows += measure(store, work, QUICK if options.quick else CASES, 1 if options.quick else 7)
    notes += ["Ours checks every byte against the manifest; the incumbent checks nothing."]
    results.record("restore", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

"""A queue the store cannot keep up with: ``python -m stress.bench.backlog [--quick] [--store S]``.

100 new files of 64 MiB, each saved as fast as the loop can, in one Metaflow task. Measured: the time in ``save()``,
and when each checkpoint is in the store, counted from the first save. Once with a bandwidth limit, beside bytes
divided by it; once without, beside the store's own rate in one process (no spool, no agent, no metadata) and the
incumbent.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import results
from .environment import Package, caveats, ours, peer, work_directory
from .servers import Target
from .targets import SINK, counted_target
from .tasks import task

COMMAND = "python -m stress.bench.backlog"
STORES = (SINK, "s3", "local")
SIZE = 64 << 20
LIMIT_BYTES_S = 400_000_000

LIMIT, UNLIMITED, PEER = "ours, limited", "ours", "peer"
_LIMIT_VARIABLE = "METAFLOW_ASYNC_CKPT_MAX_BANDWIDTH_BYTES_S"


def run_once(package: Package, store: Target, work: str, count: int, limit: int) -> dict[str, Any]:
    """One task's backlog: the answer of ``Commands.backlog``."""
    environment = {_LIMIT_VARIABLE: str(limit)} if limit else {}
    with task(package, store, work, environment=environment) as running:
        answer = running.do("backlog", count=count, size=SIZE)
    store.empty()
    return answer


def raw_seconds(store: Target, work: str, count: int) -> float:
    with task(ours(), store, work) as running:
        seconds: float = running.do("raw", count=count, size=SIZE)["seconds"]
    return seconds


def row_of(store: str, saver: str, count: int, runs: list[dict[str, Any]], bound_s: float) -> dict[str, Any]:
    """One line: the median run by its total; ``bound_s``: what it could not be faster than (0: nothing known)."""
    run = sorted(runs, key=lambda answer: answer["durable"][-1])[len(runs) // 2]
    total = run["durable"][-1]
    blocked = [seconds for answer in runs for seconds in answer["blocked"]]
    return {
        "store": store, "saver": saver, "saves": count, "n": len(runs),
        "save p50_ms": results.percentile(blocked, 0.5) * 1000, "save p99_ms": results.percentile(blocked, 0.99) * 1000,
        "loop s": run["returned"][-1], "durable s": total, "MB/s": count * SIZE / total / 1e6,
        "bound s": bound_s or "-", "durable / bound": total / bound_s if bound_s else "-",
        "curve": {"returned": run["returned"], "durable": run["durable"]},
    }  # fmt: skip


def measure(store: Target, work: str, count: int, rounds: int, limit: int) -> list[dict[str, Any]]:
    savers = {LIMIT: (ours(), limit), UNLIMITED: (ours(), 0), PEER: (peer(), 0)}
    if store.name == "local":  # The limit is the network's.
        del savers[LIMIT]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in savers}
    raw = []
    for _ in range(rounds):
        raw.append(raw_seconds(store, work, count))
        for name, (package, bytes_s) in savers.items():
            runs[name].append(run_once(package, store, work, count, bytes_s))
    bounds = {LIMIT: count * SIZE / limit, UNLIMITED: results.median(raw), PEER: 0.0}
    return [row_of(store.name, name, count, runs[name], bounds[name]) for name in savers]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 12 saves instead of three of 100")
    parser.add_argument("--store", choices=STORES, action="append", help="default: all")
    parser.add_argument("--limit", type=int, default=LIMIT_BYTES_S, help="bytes per second (default 400 MB/s)")
    parser.add_argument("--rounds", type=int, help="runs of each (default 3)")
    options = parser.parse_args(arguments)
    count, rounds = (12, 1) if options.quick else (100, 3)
    rounds = options.rounds or rounds
    rows, notes = [], caveats(quick=options.quick)
    for name in options.store or STORES:
        with work_directory() as work, counted_target(name, work) as (store, _):
            rows += measure(store, work, count, rounds, options.limit)
        for row in (row for row in rows if row["store"] == name):
            print({key: value for key, value in row.items() if key != "curve"}, flush=True)
    notes += [
        f"*bound*: bytes / {options.limit / 1e6:g} MB/s with the limit; else the store's own rate for the same files.",
        "The server shares the machine's cores with the task and its agent. On the local store ours waits for the disk "
        "(fsync), the incumbent does not.",
    ]
    results.record("backlog", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

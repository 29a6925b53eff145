"""How long a list of many checkpoints takes: ``python -m stress.bench.listing [--quick] [--count N]``.

A task has 10,000 checkpoints already (metadata written straight into its folder, as in ``history``), in a local
datastore and behind a server that counts requests, and lists them: ours, ours with a condition on the metadata, and the
incumbent. A list is asked for three times (once if it takes over a minute); seconds are the median, requests those of
one list.
"""

from __future__ import annotations

import argparse
from typing import Any

from . import results
from .environment import Package, caveats, ours, peer, work_directory
from .objects import past_references, write_history
from .servers import Sink, Target
from .targets import SINK, counted_target
from .tasks import task

COMMAND = "python -m stress.bench.listing"
#: A list that takes longer than this, in seconds, is asked for once.
COUNT, _TIMES, _SLOW_S = 10_000, 3, 60.0
#: On the server the incumbent lists so many times fewer.
_PEER_SHARE = 10

TEXT = """Listing a task that has many checkpoints, within that task; on the server, how many requests a list takes.
*where*: only those whose metadata has `loss < 0.3`. The incumbent has a tenth as many there, as it takes so long."""


def measure(package: Package, store: Target, work: str, count: int, server: Sink | None) -> list[dict[str, Any]]:
    """One row for each way to list."""
    rows = []
    with task(package, store, work) as running:
        saved = running.do("save_many", count=1, size=1024)
        running.do("drain")
        references = past_references(saved["reference"], count - 1)
        for number, reference in enumerate(references):
            reference["metadata"] = {"loss": number % 10 / 10}
        write_history(store, package, references)
        for where in (False, True) if package.name == "ours" else (False,):
            seconds, found, requests = [], 0, ""
            for _ in range(_TIMES):
                if server is not None:
                    server.reset()
                answer = running.do("list_all", where=where)
                seconds.append(answer["seconds"])
                found = answer["count"]
                if server is not None:
                    requests = str(sum(server.stats()["requests"].values()))
                if answer["seconds"] > _SLOW_S:
                    break
            label = f"{package.name}, where" if where else package.name
            rows.append({
                "store": store.name, "checkpoints": count, "list": label, "found": found,
                "s": results.median(seconds), "times": len(seconds), "requests": requests,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 checkpoints")
    parser.add_argument("--count", type=int, default=COUNT, help=f"default: {COUNT}")
    options = parser.parse_args(arguments)
    count = 100 if options.quick else options.count
    rows: list[dict[str, Any]] = []
    for name in ("local", SINK):
        for package in (ours(), peer()):
            with work_directory() as work, counted_target(name, work) as (store, server):
                # The incumbent takes 130 s for 1,000.
                share = _PEER_SHARE if (name, package.name) == (SINK, "peer") else 1
                rows += measure(package, store, work, count // share, server)
    results.record("listing", results.command(COMMAND), rows, caveats(quick=options.quick))


if __name__ == "__main__":
    main()

"""What it costs to commit a checkpoint of many nodes: requests and seconds, over the number of nodes.

    python -m stress.collective [--nodes 4 16 64] [--saves 3] [--size 65536]

All nodes are on this machine, each with its spool, its agent and its uploader, before one S3 server. Every node saves
its shard at the same moment. Counted are all requests that the server gets, from the first save until every node knows
of the commit; the first collective save of each gang, in which the uploaders start, does not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.spool.journal import COMMITTED
from harness.files.writers import content
from harness.s3.proxy import PASSED, Proxy
from harness.tasks.gangs import Gang
from harness.tasks.task import Task
from stress.bench import results
from stress.bench.environment import caveats
from stress.s3_target import s3_target

COMMAND = "python -m stress.collective"
_LIMIT_S = 300.0


def measure(nodes: int, saves: int, size: int, base: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One gang, one row."""
    seconds, all_know, requests = [], [], []
    with s3_target(base, patch) as (spec, _), Proxy(spec.options["client_params"]["endpoint_url"]) as proxy:
        # After the server: a task's processes are told by their environment from others.
        task = Task(base, patch)
        params = {**spec.options["client_params"], "endpoint_url": proxy.url}
        task.store = replace(spec, options={**spec.options, "client_params": params})
        gang = Gang(task, nodes).start()
        for number in range(saves + 1):
            for node in range(nodes):
                (gang.folder(node) / f"shard-{node}").write_bytes(content(number, size))
            before, began = proxy.counts(), time.monotonic()
            references = [
                node.save(gang.folder(node.task.node), metadata={"n": number}, collective=True) for node in gang.nodes
            ]
            references[0].wait(_LIMIT_S)
            committed = time.monotonic() - began
            for reference in references:
                reference.wait(_LIMIT_S)
                assert reference.state == COMMITTED
            if number:  # The uploaders run.
                seconds.append(committed)
                all_know.append(time.monotonic() - began)
                requests.append((proxy.counts() - before)[PASSED])
        gang.flush()
        if left := task.close():
            print(f"left behind: {left}")
    return {
        "nodes": nodes, "saved and committed, s": round(results.median(seconds), 2),
        "until every node knows, s": round(results.median(all_know), 2), "requests": results.median(requests),
        "requests a node": round(results.median(requests) / nodes, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--size", type=int, default=64 << 10, help="of a shard, in bytes")
    options = parser.parse_args()
    rows = []
    for nodes in options.nodes:
        with (
            tempfile.TemporaryDirectory(prefix="async-ckpt-collective-") as base,
            pytest.MonkeyPatch.context() as patch,
        ):
            rows.append(measure(nodes, options.saves, options.size, Path(base), patch))
        print(rows[-1], flush=True)
    notes = [
        *caveats(quick=False),
        f"{options.saves} collective saves each, shards of {options.size >> 10} KiB; medians.",
        "Two cores do the work of all nodes here, so seconds grow with their number. Requests are what carries "
        "over: a node writes its shard and one small object, and looks for the commit with growing pauses; rank 0 "
        "lists, reads one small object for each node, writes manifest, metadata (two copies) and latest (two), "
        "and removes the small ones.",
        "Reasoned on to 1,024 nodes: 2 writes a node, side by side on as many machines; for rank 0, 1,024 reads "
        "and as many deletes of small objects, 32 at a time at 20 ms each: 0.7 s and 0.7 s (the commit waits for "
        "the reads alone), and 2 pages a listing. Followers look 1,000 times a second together at most, by pauses "
        "that grow with their number; S3 takes 5,500 a second for a prefix.",
    ]
    results.record("collective", results.command(COMMAND), rows, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())

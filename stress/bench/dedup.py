"""Unchanged files: ``python -m stress.bench.dedup [--quick] [--store S]``.

A directory as fine-tuning with LoRA leaves it: 2 GiB of frozen weights in four files, a tokenizer of 11 MiB, small
JSONs, and an adapter of 20 MiB in two files that is rewritten by rename before each of 10 saves. Each checkpoint is in
the store before the next. Per checkpoint: bytes on the wire (bodies received by the discarding S3 server), requests, or
new blocks on the local store's disk; and seconds until it is durable, the save included.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from . import results
from .environment import Package, caveats, ours, peer, work_directory
from .servers import Sink, Target
from .targets import SINK, counted_target
from .tasks import task

COMMAND = "python -m stress.bench.dedup"
STORES = (SINK, "local")
_KIB, _MIB = 1 << 10, 1 << 20

#: A file whose mtime is nearer to the save may still change within its clock's tick: it is not taken for unchanged.
_SETTLED_S = 0.5

Files = dict[str, int]
Figures = dict[str, float]


def frozen(shard: int) -> Files:
    """What never changes: path -> size."""
    files = {f"model-0000{number}-of-00004.safetensors": shard for number in range(1, 5)}
    files["tokenizer.json"] = 11 * _MIB
    names = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "model.safetensors.index")
    return files | {f"{name}.json": 2 * _KIB for name in names}


CHANGING = {"adapter/adapter_model.safetensors": 10 * _MIB, "adapter/optimizer.pt": 10 * _MIB}


def run_once(package: Package, store: Target, server: Sink | None, work: str, shard: int, saves: int) -> list[Figures]:
    """What each checkpoint of one task cost."""
    root = os.path.join(work, package.name, "local")
    figures = []
    with task(package, store, work) as running:
        running.do("write", files=frozen(shard), folder="lora")
        for _ in range(saves):
            running.do("write", files=CHANGING, folder="lora")
            time.sleep(_SETTLED_S)
            before = _counts(server, root)
            began = time.monotonic()
            blocked = running.do("save", folder="lora")["seconds"]
            running.do("drain")
            seconds = time.monotonic() - began
            after = _counts(server, root)
            figures.append({"blocked": blocked, "seconds": seconds} | {k: after[k] - before[k] for k in after})
    store.empty()
    return figures


def _counts(server: Sink | None, root: str) -> Figures:
    """``bytes``, ``puts`` and ``copies`` so far."""
    if server is None:
        return {"bytes": new_blocks(root), "puts": 0, "copies": 0}
    stats = server.stats()
    requests = stats["requests"]
    return {
        "bytes": stats["received"],
        "puts": sum(requests.get(kind, 0) for kind in ("PutObject", "UploadPart")),
        "copies": sum(requests.get(kind, 0) for kind in ("CopyObject", "UploadPartCopy")),
    }


def new_blocks(root: str) -> int:
    """Bytes of the blocks of all files below ``root``, hard links counted once. Blocks that reflinks share count for
    each.
    """
    blocks = {}
    for folder, _, names in os.walk(root):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            blocks[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(blocks.values())


def row_of(store: str, package: str, runs: list[list[Figures]]) -> dict[str, Any]:
    """The medians of all runs: of the first checkpoint, of the later ones, and of the sums."""

    def median(pick: Callable[[list[Figures]], float]) -> float:
        return results.median([pick(run) for run in runs])

    def later(key: str) -> float:
        return results.median([figures[key] for run in runs for figures in run[1:]])

    return {
        "store": store, "package": package, "checkpoints": len(runs[0]), "n": len(runs),
        "first, MB": median(lambda run: run[0]["bytes"]) / 1e6, "each later, MB": later("bytes") / 1e6,
        "all, MB": median(lambda run: sum(figures["bytes"] for figures in run)) / 1e6,
        "later PUTs": int(later("puts")), "later copies": int(later("copies")),
        "first, s": median(lambda run: run[0]["seconds"]), "each later, s": later("seconds"),
        "all, s": median(lambda run: sum(figures["seconds"] for figures in run)),
        "later save_ms": later("blocked") * 1000,
    }  # fmt: skip


def measure(store: Target, server: Sink | None, work: str, shard: int, saves: int, rounds: int) -> list[dict[str, Any]]:
    runs: dict[str, list[list[Figures]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for package in (ours(), peer()):
            runs[package.name].append(run_once(package, store, server, work, shard, saves))
    rows = [row_of(store.name, name, found) for name, found in runs.items()]
    mine, theirs = rows
    mine["peer / ours (MB)"] = f"{theirs['all, MB'] / mine['all, MB']:,.1f} x"
    mine["peer / ours (s)"] = f"{theirs['all, s'] / mine['all, s']:,.1f} x"
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="128 MiB frozen, 3 saves, once instead of 3 times")
    parser.add_argument("--store", choices=STORES, action="append", help="default: both")
    options = parser.parse_args(arguments)
    shard, saves, rounds = (32 * _MIB, 3, 1) if options.quick else (512 * _MIB, 10, 3)
    rows, notes = [], caveats(quick=options.quick)
    for name in options.store or STORES:
        with work_directory() as work, counted_target(name, work) as (store, server):
            rows += measure(store, server, work, shard, saves, rounds)
        for row in rows[-2:]:
            print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    notes += ["On the local store MB are new blocks on the disk; hard links count once."]
    results.record("dedup", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

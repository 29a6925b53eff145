"""Rules of retention, removals and garbage collection, against a model and against SIGKILL.

    python -m stress.retention [--operations 100000] [--kills 1000] [--seed N]

First random lives (``harness/kills/retention_lives.py``): two tasks save, annotate, apply their rules, remove by hand,
begin attempts, collect garbage, at once and with deaths anywhere; in memory, and on the local store. After each
operation whatever is listed can be loaded, nothing is gone that must stay, and nothing stays that no rule keeps. Then
processes that remove (by hand, by rules, as garbage) are killed (``harness/kills/removers.py``), on the local store and
on an S3 server (moto). Exit status 1 if something was wrong.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from typing import Any

import anyio

from async_ckpt.config import Config
from async_ckpt.stores import open_store
from async_ckpt.stores.base import StoreSpec
from harness.kills.edited_saves import on_server
from harness.kills.removers import kill_removers
from harness.kills.retention_lives import CONFIG, live
from harness.s3 import servers
from harness.stores.memory import MemoryStore
from stress.bench import results
from stress.bench.environment import caveats

COMMAND = "python -m stress.retention"
#: A task's life is not longer than this, in operations: later ones begin with an empty store.
_LIFE = 500
#: The local store gets so many of the operations.
_LOCAL_SHARE = 0.02


def model(where: str, operations: int, seed: int) -> dict[str, Any]:
    """Many lives, until there were so many operations."""
    done, wrong, began = 0, 0, time.monotonic()
    row: dict[str, Any] = {"store": where, "operations": 0, "deaths": 0}
    while done < operations and not wrong:
        seed += 1
        with tempfile.TemporaryDirectory(prefix="async-ckpt-retention-") as folder:
            store = MemoryStore() if where == "memory" else open_store(StoreSpec("local", folder), CONFIG)
            lives = anyio.run(live, store, seed, min(_LIFE, operations - done))
        done += lives.operations
        row["deaths"] += lives.done["killed"]
        wrong += len(lives.wrong)
        for text in lives.wrong:
            print(f"seed {seed}: {text}", file=sys.stderr, flush=True)
    return {**row, "operations": done, "wrong": wrong, "s": time.monotonic() - began}


def killed(where: str, kills: int, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="async-ckpt-retention-") as folder:
        if where == "local":
            found = kill_removers(functools.partial(open_store, StoreSpec("local", folder), CONFIG), kills, seed)
        else:
            with servers.moto() as server:
                spec, _ = on_server(server, "retention")
                found = kill_removers(functools.partial(open_store, spec, Config()), kills, seed)
    for text in found.wrong:
        print(f"seed {seed}: {text}", file=sys.stderr, flush=True)
    return {
        "store": where, "kills": found.kills, "ended before": found.ended, **dict(sorted(found.by.items())),
        "checkpoints removed": found.removed, "wrong": len(found.wrong), "s": time.monotonic() - began,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    local = int(options.operations * _LOCAL_SHARE)
    lives = [model("memory", options.operations - local, options.seed), model("local", local, options.seed)]
    on_s3 = options.kills // 10
    dead = [killed("local", options.kills - on_s3, options.seed), killed("moto", on_s3, options.seed)]
    for row in [*lives, *dead]:
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    command = results.command(COMMAND, options.seed)
    results.record("retention", command, lives, caveats(quick=False))
    results.record("retention_kills", command, dead, caveats(quick=False))
    return 1 if any(row["wrong"] for row in [*lives, *dead]) else 0


if __name__ == "__main__":
    sys.exit(main())

"""A task saves states in threads and in a subprocess, or its ranks save together; they, agent and uploader are killed.

    python -m stress.state_kills [--minutes M] [--store local|s3] [--victim V] [--moment M] [--torch] [--memory OPTIONS]

A round is one task (``harness/kills/state_kills.py``): killed attempt after attempt at random moments, or between copy
and link, link and record, record and return. In the end each state whose save had returned is in the store, bit for
bit, nothing is torn, and nothing is left in memory. Where ranks are killed (``harness/kills/rank_kills.py``), they are
started again, and begin with the newest checkpoint that all had saved. S3 is rclone's server, whose objects are looked
at as files. Exit status 1 if something is wrong; its directory is left then, and printed. ``--memory size=64m`` has the
states staged in a file system in memory that is mounted with these options (needs root): one that is too small, or
read-only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.kills import numbered_states, rank_kills
from harness.kills.rank_kills import RankRound
from harness.kills.state_kills import MOMENTS, RANDOM, VICTIMS, Found, StateRound
from stress.bench import results
from stress.bench.environment import memory_directory
from stress.kills.figures import lines
from stress.s3_target import s3_target

COMMAND = "python -m stress.state_kills"
STORES = ("local", "s3")
#: How many save together in a round of ranks.
_RANKS = (2, 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no round after so many")
    parser.add_argument("--store", choices=STORES, nargs="+", default=list(STORES))
    victims = [*VICTIMS, *rank_kills.VICTIMS]
    parser.add_argument("--victim", choices=victims, nargs="+", default=victims)
    parser.add_argument("--moment", choices=MOMENTS, nargs="+", default=list(MOMENTS))
    parser.add_argument("--kills", type=int, default=6, help="of a round")
    parser.add_argument("--memory", help="options with which tmpfs is mounted, to stage in it")
    parser.add_argument("--torch", action="store_true", help="save tensors of torch as well")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-record", action="store_true", help="keep the figures out of BENCHMARKS.md")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    random_, until = random.Random(options.seed), time.monotonic() + options.minutes * 60
    kinds = {**numbered_states.KINDS, **({numbered_states.TORCH: 30} if options.torch else {})}
    cells = [
        (store, victim, moment)
        for store, victim, moment in itertools.product(options.store, options.victim, options.moment)
        # Where no rank is killed, none comes by a point.
        if moment == RANDOM or victim in VICTIMS or rank_kills.VICTIMS[victim][0]
    ]
    sums: dict[tuple[str, str], Found] = {}
    base = Path(tempfile.mkdtemp(prefix="async-ckpt-state-kills-"))
    with contextlib.ExitStack() as stack:
        s3 = None
        if "s3" in options.store:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            s3 = stack.enter_context(s3_target(Path(stack.enter_context(memory_directory())), patch))
        state_dir = "/dev/shm"
        if options.memory:
            state_dir = stack.enter_context(_mounted(base / "memory", options.memory))
        number = 0
        while time.monotonic() < until:
            random_.shuffle(cells)
            for store, victim, moment in cells:
                if time.monotonic() < until:
                    place = _place(base / f"round-{number}", s3 if store == "s3" else None)
                    what = *place, victim, moment, random_.getrandbits(32)
                    cell: StateRound | RankRound
                    if victim in VICTIMS:
                        cell = StateRound(*what, state_dir=state_dir, kills=options.kills, spec={"kinds": kinds})
                    else:
                        ranks = random_.choice(_RANKS)
                        cell = RankRound(*what, state_dir=state_dir, kills=options.kills, ranks=ranks)
                    _play(cell, f"{number}: {store}, {victim}, {moment}", sums.setdefault((store, victim), Found()))
                    number += 1
    rows = [_row(*case, found) for case, found in sorted(sums.items())]
    print(*lines(rows), sep="\n")
    if not options.no_record:
        results.record("state_kills", results.command(COMMAND, options.seed), rows)
    wrong = sum(len(found.wrong) for found in sums.values())
    if not wrong:
        shutil.rmtree(base)
    print("0 violations" if not wrong else f"{wrong} violations; see {base}")
    return bool(wrong)


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[str]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield str(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _place(base: Path, s3: tuple[StoreSpec, Path] | None) -> tuple[Path, StoreSpec, Path]:
    base.mkdir()
    if s3 is None:
        return base, StoreSpec("local", str(base / "store")), base / "store"
    spec, folder = s3
    return base, replace(spec, root=f"{spec.root}/{base.name}"), folder / base.name


def _play(cell: StateRound | RankRound, what: str, total: Found) -> None:
    began, found = time.monotonic(), cell.run()
    said = f"{found.kills.total()} killed, {found.promised} promised, {found.committed} committed"
    print(f"{what}: {said}, {time.monotonic() - began:.1f} s", *found.wrong, sep="\n  ", flush=True)
    if not found.wrong:
        for folder in (cell.base, cell.objects):
            shutil.rmtree(folder, ignore_errors=True)
    total.add(found)


def _row(store: str, victim: str, found: Found) -> dict[str, Any]:
    return {
        "victim": victim, "store": store, "rounds": found.rounds, "kills": found.kills.total(),
        "promised": found.promised, "committed": found.committed, "most in memory, MiB": found.most_bytes >> 20 or "",
        "slowest new start, s": round(found.slowest_start_s, 1) or "", "wrong": len(found.wrong),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""Task, agent and uploader are killed with SIGKILL at every named point and at random moments, thousands of times.

    python -m stress.kills [--kills 5000] [--store local|s3] [--victim V] [--seed N] [--minutes M]

Needs what the tests need. A round is one task; each attempt of it is a process that saves until it, its agent, its
uploader, or all at once are killed, and the next attempt goes on with the same spool. The last one finishes, and the
store is compared with what was promised. A reader looks at the store all the time. S3 is rclone's server, whose
objects are looked at as files. Exit status 1 if the reader sees a checkpoint that is not whole, or one before an older
one; if one that was admitted is neither in the store nor reported as failed for a reason that is true; or if an
attempt does not begin with what was promised last. What went wrong is left under the directory that is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.kills.spool_processes import AGENT, UPLOADER, crash_points, who_dies_at
from stress.bench import results
from stress.bench.environment import memory_directory
from stress.kills.figures import Figures, lines
from stress.kills.round import MIXED, RANDOM, VICTIMS, Place, Round
from stress.s3_target import s3_target

COMMAND = "python -m stress.kills"
STORES = ("local", "s3")
_PER_ROUND = 20
_SAY_EVERY = 20


def cases(random_: random.Random, victims: list[str]) -> Iterator[tuple[str, str]]:
    """(victim, moment), for ever: each victim at every point that makes sense for it, and as often at random."""
    points = crash_points()
    moments = {victim: _shuffled_for_ever(random_, _points_for(victim, points)) for victim in victims}
    for at_random in itertools.cycle((True, False)):
        for victim in victims:
            yield victim, RANDOM if at_random else next(moments[victim])


def _points_for(victim: str, points: list[str]) -> list[str]:
    """The process that comes by a point dies there: other processes than the victim are not to die."""
    if victim == MIXED:
        return [RANDOM]
    if victim in ("task", "all at once"):
        return points
    wanted = AGENT if victim == "agent" else UPLOADER
    return [point for point in points if who_dies_at(point) == wanted]


def _shuffled_for_ever(random_: random.Random, items: list[str]) -> Iterator[str]:
    while True:
        yield from random_.sample(items, len(items))


class Matrix:
    """Runs rounds side by side until there were enough kills, and adds up."""

    def __init__(self, options: argparse.Namespace, base: Path, s3: tuple[StoreSpec, Path] | None) -> None:
        self._options, self._base, self._s3 = options, base, s3
        self._until = time.monotonic() + options.minutes * 60
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.figures: dict[tuple[str, str], Figures] = {}
        self.failures: list[BaseException] = []

    @property
    def kills(self) -> int:
        return sum(figures.kills.total() for figures in self.figures.values())

    def stop(self) -> None:
        """Begin no more rounds."""
        self._until = 0.0

    def lane(self, store: str, seed: int) -> None:
        """One thread's rounds."""
        random_ = random.Random(seed)
        try:
            for victim, moment in cases(random_, self._options.victim):
                if self.failures or self.kills >= self._options.kills or time.monotonic() >= self._until:
                    return
                self._round(store, victim, moment, random_.getrandbits(32))
        except BaseException as error:
            self.failures.append(error)
            raise

    def _round(self, store: str, victim: str, moment: str, seed: int) -> None:
        with self._lock:
            number = next(self._numbers)
        place = self._place(store, number)
        found = Round(place, victim, moment, _PER_ROUND, seed).run()
        if not found.wrong:
            shutil.rmtree(place.base)
            shutil.rmtree(place.objects, ignore_errors=True)
        with self._lock:
            for what in found.wrong:
                print(f"round {number} ({victim}, {moment}, {store}, seed {seed}), {place.base}: {what}", flush=True)
            self.figures.setdefault((victim, store), Figures()).add(found)
            if sum(figures.rounds for figures in self.figures.values()) % _SAY_EVERY == 0:
                self._say()

    def _place(self, store: str, number: int) -> Place:
        base = self._base / f"round-{number}"
        base.mkdir()
        if store == "local":
            return Place(base, StoreSpec("local", str(base / "store")), base / "store")
        assert self._s3 is not None
        spec, folder = self._s3
        return Place(base, replace(spec, root=f"{spec.root}/round-{number}"), folder / f"round-{number}")

    def _say(self) -> None:
        total = Figures()
        for figures in self.figures.values():
            total.add(figures)
        print(
            f"{time.strftime('%H:%M:%S')} kills {total.kills.total()}, rounds {total.rounds}, saves {total.saves}, "
            f"committed {total.committed}, failed {total.failed}, wrong {len(total.wrong)}, looks {total.looks}",
            flush=True,
        )

    def by_moment(self) -> dict[str, Counter[str]]:
        """Kills by store: "<process> <moment>" → count."""
        found: dict[str, Counter[str]] = {}
        for (_, store), figures in self.figures.items():
            counts = found.setdefault(store, Counter())
            for (process, moment), count in figures.kills.items():
                counts[f"{process}, {moment}"] += count
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5000)
    parser.add_argument("--store", choices=STORES, nargs="+", default=list(STORES))
    parser.add_argument("--victim", choices=[*VICTIMS, MIXED], nargs="+", default=[*VICTIMS, MIXED])
    parser.add_argument("--lanes", type=int, default=2, help="rounds side by side")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no round after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-record", action="store_true", help="keep the figures out of BENCHMARKS.md")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began, base = time.monotonic(), Path(tempfile.mkdtemp(prefix="async-ckpt-kills-"))
    with contextlib.ExitStack() as stack:
        s3 = None
        if "s3" in options.store:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            s3 = stack.enter_context(s3_target(Path(stack.enter_context(memory_directory())), patch))
        matrix = Matrix(options, base, s3)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: matrix.stop())
        lanes = [
            threading.Thread(target=matrix.lane, args=(options.store[lane % len(options.store)], options.seed + lane))
            for lane in range(options.lanes)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    rows = [figures.row(*case) for case, figures in sorted(matrix.figures.items())]
    print(*lines(rows), sep="\n")
    notes = [f"{matrix.kills} processes killed in {(time.monotonic() - began) / 60:.0f} min."]
    for store, counts in matrix.by_moment().items():
        notes.append(f"Kills, {store}: " + "; ".join(f"{what}: {count}" for what, count in sorted(counts.items())))
    print(*notes, sep="\n")
    if not options.no_record:
        results.record("kills", results.command(COMMAND, options.seed), rows, notes)
    wrong = sum(len(figures.wrong) for figures in matrix.figures.values())
    if not wrong and not matrix.failures:
        shutil.rmtree(base)
    print("0 violations" if not wrong else f"{wrong} violations; see {base}")
    return bool(wrong or matrix.failures)


if __name__ == "__main__":
    sys.exit(main())

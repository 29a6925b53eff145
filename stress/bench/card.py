"""What the card costs a task: ``python -m stress.bench.card [--quick] [--ends N] [--rounds N]``.

Two things, each with the card and without, in turns. The end of a task: flows whose step saves 1 MiB three times, and
ends at once (``after_code``: from the last line of the user's code to the end of the task; the incumbent's card stands
beside it). The loop: steps of 6 ms beside saves (``flows/training.py``), in blocks in random order, and in rounds with
new processes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import time
from typing import Any

from . import results
from .aims import Aim
from .environment import Package, caveats, ours, peer, work_directory
from .servers import Target, target
from .tasks import Task, numpy_directory, task

COMMAND = "python -m stress.bench.card"
CARD, NONE, PEER_CARD, PEER_NONE = "ours, card", "ours, no card", "peer, card", "peer, no card"
END, LOOP = "the end of a task", "a step of the loop"
#: How much later a task may end, in seconds, and by which share a step may take longer.
LIMIT_S, LIMIT_SHARE = 0.05, 0.01
_SAVES, _BLOCK_S, _BLOCKS, _EVERY_S, _MIB = 3, 10.0, 2, 2.0, 1 << 20

#: Of fewer than this there is no p99.
_FOR_P99 = 1000

TEXT = """What the card costs: from the last line of a step that has saved 1 MiB three times to the end of its task, and
the steps of a training loop of 6 ms that saves 4 MiB every 2 s, in blocks that take turns in random order. Each round
of the loop has new processes, as two that do the same differ by a per cent or two all their lives; *longer* is the
median of what the rounds say."""


def end_of_task(package: Package, store: Target, work: str, *, card: bool) -> float:
    """Seconds from the end of the user's code to the end of the task."""
    with task(package, store, work, options={"show_card": card}) as running:
        for _ in range(_SAVES):
            running.do("write", files={"state": _MIB})
            running.do("save")
    return running.ended()["after_code"]


def ends(store: Target, work: str, count: int) -> dict[str, list[float]]:
    mine, theirs = ours(), peer()
    kinds = {CARD: (mine, True), NONE: (mine, False), PEER_CARD: (theirs, True), PEER_NONE: (theirs, False)}
    found: dict[str, list[float]] = {label: [] for label in kinds}
    for number in range(count):
        for label in random.sample(list(kinds), len(kinds)):
            own = os.path.join(work, f"{number}-{label}")
            os.mkdir(own)
            package, card = kinds[label]
            found[label].append(end_of_task(package, store, own, card=card))
        print(f"{time.strftime('%H:%M:%S')} {number + 1} of {count} ends", flush=True)
    return found


def steps(store: Target, work: str, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each step, and of each round by how much its median is longer with the card. Each round has tasks of
    its own: two processes that do the same differ by a per cent or two for as long as they live.
    """
    found: dict[str, list[float]] = {CARD: [], NONE: []}
    shares = []
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            tasks: dict[str, Task] = {}
            for label in random.sample(list(found), len(found)):
                own = os.path.join(work, f"loop-{number}-{label}")
                os.mkdir(own)
                running = task(ours(), store, own, commands="training", options={"show_card": label == CARD})
                tasks[label] = stack.enter_context(running)
            prepared = [running.do("prepare", size=4 * _MIB, torch=False) for running in tasks.values()]
            amounts = prepared[0]  # A step is as much work in both.
            times: dict[str, list[float]] = {label: [] for label in tasks}
            for _ in range(_BLOCKS):
                for label in random.sample(list(tasks), len(tasks)):
                    how = {"every": _EVERY_S, "seconds": _BLOCK_S, "busy": False, "uploads": "saves", **amounts}
                    times[label] += tasks[label].do("train_for", **how)["times"]
        for label, seconds in times.items():
            found[label] += seconds
        shares.append(results.median(times[CARD]) / results.median(times[NONE]) - 1)
        print(f"{time.strftime('%H:%M:%S')} round {number + 1} of {rounds}: {shares[-1]:+.2%}", flush=True)
    return found, shares


def rows_of(what: str, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    base = {CARD: NONE, PEER_CARD: PEER_NONE}
    rows = []
    for label, seconds in found.items():
        other = found.get(base.get(label, ""), [])
        more = (results.median(seconds) - results.median(other)) * 1000 if other else ""
        summary = results.summary(seconds)
        if len(seconds) < _FOR_P99:
            summary["p99_ms"] = ""
        rows.append({"what": what, "task": label, **summary, "more than without, ms": more})
    return rows


def of_card(rows: list[dict[str, Any]]) -> list[Aim]:
    """Whether neither the end nor the loop feels the card."""
    by = {(row["what"], row["task"]): row for row in rows}
    later = by[END, CARD]["more than without, ms"]
    what = f"A task with a card ends at most {LIMIT_S * 1000:.0f} ms later"
    aims = [Aim(what, later <= LIMIT_S * 1000, f"{later:+.0f} ms")]
    share = by[LOOP, CARD]["longer"]
    what = f"A step beside the card takes at most {LIMIT_SHARE:.0%} longer (p50)"
    aims.append(Aim(what, share <= LIMIT_SHARE, f"{share:+.1%}, {by[LOOP, CARD]['rounds']}"))
    return aims


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 ends of each, and one round of the loop")
    parser.add_argument("--ends", type=int, default=20, help="tasks of each kind (default 20)")
    parser.add_argument("--rounds", type=int, default=12, help="of the loop, 40 s each (default 12)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.ends, options.rounds = 2, 1
    with work_directory() as work, target("local", work) as store:
        rows = rows_of(END, ends(store, work, options.ends))
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": numpy_directory()}
        store = dataclasses.replace(store, environment=store.environment | one_thread)
        times, shares = steps(store, work, options.rounds)
        rows += rows_of(LOOP, times)
    said = {
        "longer": results.median(shares),
        "rounds": f"{len(shares)} rounds: {min(shares):+.1%} to {max(shares):+.1%}",
    }
    rows = [row | (said if (row["what"], row["task"]) == (LOOP, CARD) else dict.fromkeys(said, "")) for row in rows]
    for row in rows:
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    for aim in of_card(rows):
        print(aim, flush=True)
    results.record("card", results.command(COMMAND), rows, caveats(quick=options.quick))


if __name__ == "__main__":
    main()

"""The parts of ``stress.gpu_loop``: each runs tasks of ``flows/loop``; rows, notes, and what a plot needs."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import loop_report, results
from .environment import Package
from .servers import Target
from .targets import SINK, counted_target
from .tasks import Task, task

Rows = list[dict[str, Any]]
Part = tuple[Rows, list[str], dict[str, Any]]

WAYS = ("save", "sync", "async")
_LEAST_ROUNDS = 3
#: An upload takes this share of the time from one checkpoint to the next.
_UNDER_WAY = 0.95


@dataclass(frozen=True)
class Plan:
    """What was asked for. ``peer``: None where the incumbent is left out."""

    options: argparse.Namespace
    ours: Package
    peer: Package | None

    @contextlib.contextmanager
    def task(self, package: Package, store: Target, work: str, **settings: str) -> Iterator[Task]:
        """A task of one of the packages. Ours gets this process's PYTHONPATH, where there is one."""
        kept = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ and package is self.ours else {}
        with task(package, store, work, commands="loop.commands", environment={**kept, **settings}) as running:
            yield running
            running.do("close")

    def prepare(self, running: Task, only: Sequence[str] = (), threads: int = 0) -> dict[str, Any]:
        """Make the model there; what it is, and what can save it."""
        o = self.options
        threads = threads or o.threads
        return running.do(
            "prepare", parameters=o.parameters, tokens=o.tokens, device=o.device, threads=threads, only=list(only)
        )

    @property
    def savers(self) -> list[str]:
        """Those that were asked for; none: all."""
        return [name for name in self.options.savers.split(",") if name]

    @property
    def ways(self) -> list[str]:
        """Of those, what saves while steps are timed and memory is watched."""
        return [name for name in WAYS if not self.savers or name in self.savers]

    def end(self) -> float:
        """When a part that begins now has used what it may of the minutes."""
        return time.monotonic() + 60 * self.options.minutes / len(self.options.only.split(","))


def blocked(plan: Plan, work: str) -> Part:
    """All ways to save take turns, in both tasks; what each saves is checked first."""
    end, names = plan.end(), plan.savers
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(counted_target("local", work))[0]
        mine = stack.enter_context(plan.task(plan.ours, store, work))
        facts = plan.prepare(mine, [name for name in names if name != "peer"])
        tasks = dict.fromkeys(facts["savers"], mine)
        if plan.peer and (not names or "peer" in names):
            theirs = stack.enter_context(plan.task(plan.peer, store, work))
            facts["savers"] |= plan.prepare(theirs)["savers"]
            tasks["peer"] = theirs
        same = {name: running.do("check", saver=name)["same"] for name, running in tasks.items() if name != "copy"}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in tasks}
        for number in range(plan.options.rounds):
            for name in random.sample(list(tasks), len(tasks)):
                taken[name].append(tasks[name].do("save", saver=name))
                store.empty()
            say(f"blocked: {number + 1} of {plan.options.rounds}")
            if time.monotonic() > end and number + 1 >= _LEAST_ROUNDS:
                break
    return loop_report.blocked_rows(facts, taken, same), loop_report.facts_notes(facts), {}


def steps(plan: Plan, work: str) -> Part:
    """Blocks of steps in turns, without checkpoints and with; with a core left to others, and with all cores busy."""
    rows: Rows = []
    notes: list[str] = []
    cores = len(os.sched_getaffinity(0))
    situations = {"a core free": cores - 1, "all cores busy": cores}
    if plan.options.device == "cuda" or plan.options.threads or cores == 1:
        situations = {"as told": plan.options.threads}
    for situation, threads in situations.items():
        own = os.path.join(work, situation)
        os.mkdir(own)
        with counted_target(SINK, own) as (store, _):
            with plan.task(plan.ours, store, own) as running:
                size = plan.prepare(running, ["copy"], threads)["bytes"]
                step = results.median(running.do("train", steps=10)["times"])
            rate = str(int(size / (step * plan.options.every * _UNDER_WAY)))
            with plan.task(plan.ours, store, own, METAFLOW_ASYNC_CKPT_MAX_BANDWIDTH_BYTES_S=rate) as running:
                facts = plan.prepare(running, plan.ways, threads)
                runs = _blocks(plan, running, ["", *facts["savers"]])
        rows += loop_report.steps_rows(situation, facts, runs, plan.options.every)
        notes = loop_report.facts_notes(facts)
    return rows, notes, {}


def _blocks(plan: Plan, running: Task, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Each as often, in random order. ``""`` is without checkpoints; nothing is under way when a block begins."""
    end = plan.end()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(plan.options.blocks):
        for name in random.sample(names, len(names)):
            runs[name].append(running.do("train", saver=name, steps=5 * plan.options.every, every=plan.options.every))
            running.do("drain")
        say(f"steps: {number + 1} of {plan.options.blocks}")
        if time.monotonic() > end:
            break
    return runs


def memory(plan: Plan, work: str) -> Part:
    """So many checkpoints in a task of its own for each way, each saved while the one before is uploaded."""
    rows: Rows = []
    notes: list[str] = []
    samples: dict[str, Rows] = {}
    for name in plan.ways:
        own = os.path.join(work, name)
        os.mkdir(own)
        with counted_target(SINK, own) as (store, _), plan.task(plan.ours, store, own) as running:
            facts = plan.prepare(running, [name])
            if name in facts["savers"]:
                say(f"memory: {facts['savers'][name][0]}")
                samples[name] = running.do("memory", saver=name, count=plan.options.checkpoints)["samples"]
                rows.append(loop_report.memory_row(facts, name, samples[name]))
            notes = notes or loop_report.facts_notes(facts)
    return rows, notes, {"samples": samples}


def restore(plan: Plan, work: str) -> Part:
    """All ways to come back take turns, from each store, in both tasks."""
    rows: Rows = []
    notes: list[str] = []
    for where in plan.options.stores.split(","):
        own = os.path.join(work, where)
        os.mkdir(own)
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(counted_target(where, own))[0]
            mine = stack.enter_context(plan.task(plan.ours, store, own))
            facts = plan.prepare(mine, ["torch.save", "save", "sync"])
            ways = {way: mine for way in mine.do("save_for_restores")["ways"]}
            if plan.peer:
                theirs = stack.enter_context(plan.task(plan.peer, store, own))
                plan.prepare(theirs)
                ways |= {way: theirs for way in theirs.do("save_for_restores")["ways"]}
            same = {way: running.do("restore", way=way, check=True)["same"] for way, running in ways.items()}
            taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for number in range(plan.options.restores):
                for way in random.sample(list(ways), len(ways)):
                    taken[way].append(ways[way].do("restore", way=way))
                say(f"restore from {where}: {number + 1} of {plan.options.restores}")
        rows += loop_report.restore_rows(where, facts, taken, same)
        notes = loop_report.facts_notes(facts)
    return rows, notes, {}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

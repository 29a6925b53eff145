"""Saves while the store, and the network to it, fail in every way there is; the trainer must not notice.

    python -m stress.faults [--saves 150] [--quick] [--seed N]

Needs what the tests need. The same training loop runs against rclone's S3 server behind a proxy that spoils what passes
through it, scenario by scenario. Afterwards every checkpoint is compared with what was saved, in the server's own
directory. Exit status 1 if one is missing or damaged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.checkpointer import Checkpointer
from async_ckpt.errors import CheckpointError
from async_ckpt.manifest import Manifest
from async_ckpt.stores.base import StoreSpec
from stress.bench import results
from stress.bench.environment import caveats, memory_directory, work_directory
from stress.bench.servers import KEY, SECRET, rclone
from tests.support.agents import Task, content
from tests.support.proxy import PASSED, Proxy

COMMAND = "python -m stress.faults"
BUCKET = "faults"
#: Bytes of what is saved: a file that is linked, one that is packed; and of the former, once, in several parts.
WEIGHTS, STEP, LARGE = 200 << 10, 100, 20 << 20
_FLUSH_S = 600.0

_FAILING = {"share": 0.2}
_LATENCY = {"latency_s": 0.2}
_THROTTLE = {"bytes_s": 1e6}


@dataclass(frozen=True)
class Scenario:
    """The proxy's settings, and whether the store is out of reach for a while."""

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    outage: bool = False


SCENARIOS = (
    Scenario("none"),
    Scenario("20 % of requests fail", _FAILING),
    Scenario("200 ms of latency", _LATENCY),
    Scenario("1 MB/s", _THROTTLE),
    Scenario("outage", outage=True),
    Scenario("all together", {**_FAILING, **_LATENCY, **_THROTTLE}, outage=True),
)


@dataclass(frozen=True)
class Plan:
    """How many saves, what a step of training takes, and when an outage begins and how long it lasts, in seconds."""

    saves: int
    step_s: float
    outage_at_s: float
    outage_s: float

    def size(self, number: int) -> int:
        """Bytes of the weights in a save."""
        return LARGE if number == self.saves // 2 else WEIGHTS


class Outage(threading.Thread):
    """Brings the store out of reach, and back; no later than at the end of the block."""

    def __init__(self, proxy: Proxy, plan: Plan) -> None:
        super().__init__()
        self._proxy, self._plan, self._over = proxy, plan, threading.Event()

    def run(self) -> None:
        if not self._over.wait(self._plan.outage_at_s):
            with self._proxy.outage():
                self._over.wait(self._plan.outage_s)

    def end(self) -> None:
        self._over.set()
        self.join()


@dataclass
class Outcome:
    """What came of one scenario; times in seconds."""

    saved: list[Mapping[str, Any]] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    behind: int = 0
    flush_s: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """Its line of the table."""
        passed = self.requests[PASSED]
        return {
            "faults": name, "saves": len(self.saved),
            "save p50_ms": results.percentile(self.blocked, 0.5) * 1000,
            "save p99_ms": results.percentile(self.blocked, 0.99) * 1000, "save max_ms": max(self.blocked) * 1000,
            "requests done": passed, "failed": sum(self.requests.values()) - passed,
            "behind at the last save": self.behind, "flush s": self.flush_s,
            "missing": len(self.missing), "damaged": len(self.damaged),
        }  # fmt: skip


def run(scenario: Scenario, plan: Plan, seed: int) -> Outcome:
    """Train through the faults, wait until everything is in the store, and look at what is there."""
    with (
        work_directory() as work,
        memory_directory() as directory,
        rclone(directory) as url,
        Proxy(url, seed=seed, **scenario.settings) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.mkdir(os.path.join(directory, BUCKET))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        task = Task(Path(work), patch)
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        task.store = StoreSpec("s3", f"s3://{BUCKET}/metaflow", {"client_params": {"endpoint_url": proxy.url, **keys}})
        checkpointer, outcome = task.start(), Outcome()
        outage = Outage(proxy, plan)
        if scenario.outage:
            outage.start()
        try:
            train(checkpointer, task.work, plan, outcome)
            flush(checkpointer, outcome)
        finally:
            if scenario.outage:
                outage.end()
        outcome.requests = proxy.counts()
        # From here on the store is looked at where the server keeps it.
        task.store = StoreSpec("local", os.path.join(directory, BUCKET, "metaflow"))
        examine(task, plan, outcome)
        if left := task.close():
            print(f"left behind: {left}")
    return outcome


def train(checkpointer: Checkpointer, folder: Path, plan: Plan, outcome: Outcome) -> None:
    for number in range(plan.saves):
        for name, size in (("weights", plan.size(number)), ("step", STEP)):
            (folder.parent / "new").write_bytes(content(number, size))
            os.replace(folder.parent / "new", folder / name)
        time.sleep(plan.step_s)  # This is the training.
        started = time.perf_counter()
        reference = checkpointer.save(folder, metadata={"number": number})
        outcome.blocked.append(time.perf_counter() - started)
        outcome.saved.append(dict(reference))


def flush(checkpointer: Checkpointer, outcome: Outcome) -> None:
    outcome.behind, started = checkpointer.status()["pending"], time.monotonic()
    try:
        checkpointer.flush(_FLUSH_S)
    except CheckpointError as error:
        print(error)
    outcome.flush_s = time.monotonic() - started


def examine(task: Task, plan: Plan, outcome: Outcome) -> None:
    """Compare what is committed with what was saved, byte by byte, with nothing more in it and nothing less."""
    committed = set(task.committed_versions())
    for reference in outcome.saved:
        number = reference["metadata"]["number"]
        expected = {"weights": content(number, plan.size(number)), "step": content(number, STEP)}
        if reference["version_id"] not in committed:
            outcome.missing.append(f"save {number}")
            continue
        folder = task.stored(reference, ".")
        stored = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        if stored != expected:
            outcome.damaged.append(f"save {number}: { {name: len(data) for name, data in stored.items()} }")
        manifest = Path(task.store.root, reference["manifest"])
        listed = Manifest.from_json(json.loads(manifest.read_bytes()), where=str(manifest)).files
        if {entry.path: entry.size for entry in listed} != {name: len(data) for name, data in expected.items()}:
            outcome.damaged.append(f"save {number}: its manifest")
    if task.latest()["version_id"] != outcome.saved[-1]["version_id"]:
        outcome.damaged.append("the latest is not the last")


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=150, help="in each scenario, one every half second (default 150)")
    parser.add_argument("--quick", action="store_true", help="20 saves and an outage of 5 s; to try the tool")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    plan = Plan(20, 0.1, 0.5, 5.0) if options.quick else Plan(options.saves, 0.5, 5.0, 60.0)
    print(f"seed {options.seed}")
    rows, bad = [], 0
    notes = [
        *caveats(quick=options.quick),
        f"A save every {plan.step_s:g} s of {WEIGHTS >> 10} KiB and {STEP} bytes, one of them of {LARGE >> 20} MiB. The"
        f" outage began {plan.outage_at_s:g} s after the first and lasted {plan.outage_s:g} s. Server, proxy, agent and"
        f" trainer share the machine. Seed {options.seed}.",
    ]
    for scenario in SCENARIOS:
        outcome = run(scenario, plan, options.seed)
        rows.append(outcome.row(scenario.name))
        print(rows[-1], dict(outcome.requests), flush=True)
        for line in [*(f"missing: {name}" for name in outcome.missing), *outcome.damaged]:
            print(f"    {line}", flush=True)
        bad += len(outcome.missing) + len(outcome.damaged)
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.requests.items()) if kind != PASSED)
    notes.append(f"What failed in the last line: {by_kind}.")
    results.record("faults", COMMAND + (" --quick" if options.quick else ""), rows, notes)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

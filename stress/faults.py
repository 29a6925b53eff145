"""Saves while the store, and the network to it, fail in every way there is; the trainer must not notice.

    python -m stress.faults [--saves 150] [--quick] [--seed N]

Needs what the tests need. A training loop saves to rclone's S3 server through a proxy that spoils what passes through
it, scenario by scenario, and each time to the same server without faults as well, in turns: whatever else the machine
does, it does to both. Afterwards every checkpoint is compared with what was saved, in the server's own directory. Exit
status 1 if one is missing or damaged.
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

from async_ckpt.errors import CheckpointError
from async_ckpt.stores.base import StoreSpec
from harness.s3.proxy import PASSED, Proxy
from harness.tasks.task import Task, content
from stress.bench import results
from stress.bench.environment import caveats, memory_directory, work_directory
from stress.bench.servers import KEY, SECRET, rclone

COMMAND = "python -m stress.faults"
#: Buckets of the two savers.
FAULTY, CONTROL = "faults", "control"
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


class Saver:
    """A task that saves to a server, and what came of it; times in seconds."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch, plan: Plan, url: str) -> None:
        base.mkdir()
        self._task, self._plan = Task(base, patch), plan
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self._bucket = base.name
        root = f"s3://{self._bucket}/metaflow"
        self._task.store = StoreSpec("metaflow-s3", root, {"client_params": {"endpoint_url": url, **keys}})
        self._checkpointer = self._task.start()
        self._saved: list[Mapping[str, Any]] = []
        self.blocked: list[float] = []
        self.behind, self.flush_s = 0, 0.0
        #: What is not as it should be, a line each.
        self.missing: list[str] = []
        self.damaged: list[str] = []

    def write(self, number: int) -> None:
        """Write what the next save saves, to new files, as trainers do."""
        for name, data in self._content(number).items():
            (self._task.base / "new").write_bytes(data)
            os.replace(self._task.base / "new", self._task.work / name)

    def _content(self, number: int) -> dict[str, bytes]:
        return {"weights": content(number, self._plan.size(number)), "step": content(number, STEP)}

    def save(self, number: int) -> None:
        started = time.perf_counter()
        reference = self._checkpointer.save(self._task.work, metadata={"number": number})
        self.blocked.append(time.perf_counter() - started)
        self._saved.append(dict(reference))

    def flush(self) -> None:
        """Wait until everything is in the store, or will not be."""
        self.behind, started = self._checkpointer.status()["pending"], time.monotonic()
        try:
            self._checkpointer.flush(_FLUSH_S)
        except CheckpointError as error:
            print(error)
        self.flush_s = time.monotonic() - started

    def close(self) -> None:
        if left := self._task.close():
            print(f"left behind: {left}")

    def examine(self, directory: str) -> None:
        """Compare what is committed with what was saved, byte by byte, where the server keeps it."""
        self._task.store = StoreSpec("local", os.path.join(directory, self._bucket, "metaflow"))
        committed = set(self._task.committed_versions())
        for reference in self._saved:
            number = reference["metadata"]["number"]
            if reference["version_id"] in committed:
                self._compare(number, reference)
            else:
                self.missing.append(f"{self._bucket}: save {number}")
        if committed and self._task.latest()["version_id"] != self._saved[-1]["version_id"]:
            self.damaged.append(f"{self._bucket}: the latest is not the last")

    def _compare(self, number: int, reference: Mapping[str, Any]) -> None:
        expected, folder = self._content(number), self._task.stored(reference, ".")
        stored = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        if stored != expected:
            self.damaged.append(f"{self._bucket}: save {number}")
        manifest = Path(self._task.store.root, reference["manifest"])
        written = json.loads(manifest.read_bytes()) if manifest.exists() else {"files": []}
        sizes = {entry["path"]: entry["size"] for entry in written["files"]}
        if sizes != {name: len(data) for name, data in expected.items()}:
            self.damaged.append(f"{self._bucket}: the manifest of save {number}")


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario: the saver that met the faults, the one that met none, and what the proxy did."""

    faulty: Saver
    control: Saver
    requests: Counter[str]

    @property
    def wrong(self) -> list[str]:
        return [line for saver in (self.faulty, self.control) for line in saver.missing + saver.damaged]

    def row(self, name: str) -> dict[str, Any]:
        """Its line of the table."""
        mine, other, passed = self.faulty.blocked, self.control.blocked, self.requests[PASSED]
        return {
            "faults": name, "saves": len(mine),
            "save p50_ms": results.percentile(mine, 0.5) * 1000,
            "beside it, without faults, p50_ms": results.percentile(other, 0.5) * 1000,
            "save p99_ms": results.percentile(mine, 0.99) * 1000,
            "beside it, p99_ms": results.percentile(other, 0.99) * 1000,
            "requests done": passed, "failed": sum(self.requests.values()) - passed,
            "behind at the last save": self.faulty.behind, "flush s": self.faulty.flush_s,
            "missing": len(self.faulty.missing) + len(self.control.missing),
            "damaged": len(self.faulty.damaged) + len(self.control.damaged),
        }  # fmt: skip


def run(scenario: Scenario, plan: Plan, seed: int) -> Outcome:
    """Train through the faults, wait until everything is in the store, and look at what is there."""
    with (
        work_directory() as work,
        memory_directory() as directory,
        rclone(directory) as url,
        Proxy(url, seed=seed, **scenario.settings) as proxy,
        Proxy(url) as idle,
        pytest.MonkeyPatch.context() as patch,
    ):
        for bucket in (FAULTY, CONTROL):
            os.mkdir(os.path.join(directory, bucket))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        faulty = Saver(Path(work, FAULTY), patch, plan, proxy.url)
        control = Saver(Path(work, CONTROL), patch, plan, idle.url)
        outage = Outage(proxy, plan)
        try:
            if scenario.outage:
                outage.start()
            train(faulty, control, plan)
            for saver in (faulty, control):
                saver.flush()
                saver.examine(directory)
        finally:
            if scenario.outage:
                outage.end()
            for saver in (faulty, control):
                saver.close()
        return Outcome(faulty, control, proxy.counts())


def train(faulty: Saver, control: Saver, plan: Plan) -> None:
    for number in range(plan.saves):
        # In turns: who saves second finds the machine as the first one left it.
        savers = (faulty, control) if number % 2 else (control, faulty)
        for saver in savers:
            saver.write(number)
        time.sleep(plan.step_s)  # This is the training.
        for saver in savers:
            saver.save(number)


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
        f" outage began {plan.outage_at_s:g} s after the first and lasted {plan.outage_s:g} s. Server, proxies, agents"
        " and trainer share the machine.",
    ]
    for scenario in SCENARIOS:
        outcome = run(scenario, plan, options.seed)
        rows.append(outcome.row(scenario.name))
        print(rows[-1], dict(outcome.requests), flush=True)
        for line in outcome.wrong:
            print(f"    missing or damaged: {line}", flush=True)
        bad += len(outcome.wrong)
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.requests.items()) if kind != PASSED)
    notes.append(f"What failed in the last line: {by_kind}.")
    results.record("faults", results.command(COMMAND, options.seed), rows, notes)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

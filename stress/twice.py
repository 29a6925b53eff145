"""The same attempt number twice: starts of one attempt on many machines, in turn and at once, killed at random.

    python -m stress.twice [--rounds 200] [--flows 20] [--seed N]

A machine is a process with a spool of its own; a round is one task on 2 to 4 of them, and a retry at its end. Three
stores: a local one, S3 whose conditions are kept (``harness/s3/fault_server.py``), and S3 whose conditions are
ignored (rclone). After each step what is committed is read back: whether it is still what it was (*overwritten*), is
what that save wrote (*damaged*), is there at all (*gone*). Each start must resume from the newest that was committed
before it began. ``--flows``: the same with Metaflow's own tasks. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError, FlushError
from async_ckpt.stores.base import Store, StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.lookup import run_with_store
from harness.flow_runs.environments import with_our_modules
from harness.flow_runs.metaflow_env import Workspace
from harness.flow_runs.same_number import Started, first_run
from harness.s3.fault_server import FaultServer
from harness.s3.memory_s3 import MemoryS3
from harness.s3.servers import BUCKET, S3Server
from harness.tasks.task import TASK, content
from stress.bench import results

from .s3_target import s3_target

COMMAND = "python -m stress.twice"
STORES = ("local", "S3", "S3, conditions ignored")
_SIZE, _LIMIT_S = 48 << 10, 180.0
Order = tuple[int, int]


# -- a machine, in a process of its own --------------------------------------------------------------------------------


def machine(plan: dict[str, Any]) -> int:
    """Begin the attempt, resume, save, and end as it is told; says each step as a line of JSON."""

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    base = Path(plan["base"])
    task = replace(TASK, run=plan["run"], attempt=plan["attempt"])
    write_lines_with(lambda line: say(report=line))
    checkpointer = Checkpointer.start(
        str(base / "spools"), task, StoreSpec.from_json(plan["store"]), Config.from_env(), uploader="process"
    )
    found = checkpointer.load_newest("fresh", str(base / f"loaded-{time.monotonic_ns()}"))
    say(resumed=[found["attempt"], found["version_id"]] if found else None)
    for number in range(plan["saves"]):
        work = base / f"work-{time.monotonic_ns()}"
        work.mkdir()
        seed = random.randrange(1 << 40)
        (work / "weights").write_bytes(content(seed, _SIZE))
        reference = checkpointer.save(work, metadata={"seed": seed})
        say(saved=[reference["attempt"], reference["version_id"]], seed=seed, key=reference["key"])
        if plan["dies"] == number:
            agent = int(Path(checkpointer.spool.path("agent.pid")).read_text())
            if plan["agent_dies"]:
                os.kill(agent, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(plan["pause_s"])
    try:
        checkpointer.flush(120)
        say(flushed=True)
    except FlushError as error:
        say(flushed=False, report=str(error))
    checkpointer.close(clean=False)
    return 0


@dataclass
class Machine:
    """What a process of the above has said, and whether it may be read to its end."""

    process: subprocess.Popen[str]
    known: Ledger
    expected: Order | None
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                self.lines.append(said)
                if "saved" in said:
                    self.known.wrote.setdefault(said["key"], []).append(said["seed"])

    def end(self, figures: Counter[str], *, at_once: bool) -> list[str]:
        """Wait for its end, and judge what it has said."""
        self.process.wait(_LIMIT_S)
        self._reader.join()
        wrong = [] if self.process.returncode in (0, -signal.SIGKILL) else [f"it ended with {self.process.returncode}"]
        figures["starts"] += 1
        figures["killed"] += self.process.returncode == -signal.SIGKILL
        figures["saved"] += sum("saved" in line for line in self.lines)
        resumed = next((line["resumed"] for line in self.lines if "resumed" in line), None)
        figures["resumed"] += resumed is not None
        if self.expected is not None and (resumed is None or tuple(resumed) < self.expected):
            figures["not from the newest"] += 1
            wrong.append(f"it resumed from {resumed}, and {self.expected} was committed before it began")
        refused = [line for line in self.lines if line.get("flushed") is False]
        if refused:
            figures["told that something is not stored"] += 1
            if not at_once:
                wrong.append(f"its flush failed: {refused[0]['report']}")
        return wrong


# -- what is in the store ----------------------------------------------------------------------------------------------


class Ledger:
    """What was ever seen of a task in the store."""

    def __init__(self, spec: StoreSpec, folder: Path | None, run: str) -> None:
        self.spec, self.folder, self.task = spec, folder, replace(TASK, run=run)
        #: By key: what was saved under it, by whoever; and its metadata, when it was first seen to be committed.
        self.wrote: dict[str, list[int]] = {}
        self.committed: dict[str, bytes] = {}

    def look(self, figures: Counter[str]) -> list[str]:
        """Read back all that is committed; returns what is wrong."""
        found = run_with_store(self.spec, Config.from_env(), self._read)
        wrong = []
        for key, (metadata, weights) in found.items():
            before = self.committed.setdefault(key, metadata)
            if before != metadata:
                figures["overwritten"] += 1
                wrong.append(f"{key} was overwritten")
                self.committed[key] = metadata
            if weights != content(json.loads(metadata)["metadata"]["seed"], _SIZE):
                figures["damaged"] += 1
                wrong.append(f"{key} is not what was saved")
        for key in [key for key in self.committed if key not in found]:
            figures["gone"] += 1
            wrong.append(f"{key} is gone")
            del self.committed[key]
        for key, seeds in self.wrote.items():
            if len(seeds) > 1:
                figures["saved twice under one key"] += len(seeds) - 1
                wrong.append(f"{key} was given to {len(seeds)} saves")
                del seeds[1:]
        return wrong

    async def _read(self, store: Store) -> dict[str, tuple[bytes, bytes]]:
        folder, found = self.task.task_folder, dict[str, tuple[bytes, bytes]]()
        keys = [entry.key async for entry in store.list(folder)]
        for key in keys:
            if layout.metadata_name_parts(folder, key[len(folder) + 1 :]) is None:
                continue
            metadata = await store.get_bytes(key)
            reference = json.loads(metadata)
            try:
                weights = await store.get_bytes(f"{reference['key']}/weights")
            except CheckpointError:
                weights = b""
            found[reference["key"]] = metadata, weights
        return found

    def newest(self) -> Order | None:
        """The newest that was seen."""
        return max((layout.order(json.loads(data)) for data in self.committed.values()), default=None)


# -- rounds ------------------------------------------------------------------------------------------------------------


def start(base: Path, ledger: Ledger, chance: random.Random, name: str, attempt: int = 0, *, dies: bool) -> Machine:
    """Begin the attempt on a machine (which may have been used before)."""
    home = base / name
    home.mkdir(exist_ok=True)
    saves = chance.randint(1, 5)
    plan = {
        "base": str(home), "run": ledger.task.run, "attempt": attempt, "store": ledger.spec.to_json(), "saves": saves,
        "dies": chance.randrange(saves) if dies else -1, "agent_dies": chance.random() < 0.5,
        "pause_s": chance.choice([0, 0.02, 0.2]),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "stress.twice", "--machine", json.dumps(plan)], stdout=subprocess.PIPE, text=True,
        env=with_our_modules(),
    )  # fmt: skip
    return Machine(process, ledger, ledger.newest())


def play(base: Path, spec: StoreSpec, run: str, chance: random.Random, figures: Counter[str]) -> list[str]:
    """One round. Returns what is wrong."""
    ledger, wrong = Ledger(spec, None, run), list[str]()
    names = [f"machine-{number}" for number in range(chance.randint(2, 4))]
    steps = chance.choice(["one after the other", "at once", "both"])
    figures[f"rounds {steps}"] += 1
    at_once = steps != "one after the other"
    running: list[Machine] = []
    for number, name in enumerate(names):
        # A machine may be used again: its disk has what it had.
        where = chance.choice(names[: number + 1]) if not running else name
        wrong += ledger.look(figures)
        running.append(start(base, ledger, chance, where, dies=chance.random() < 0.5))
        if at_once and number + 1 < len(names) and (steps == "at once" or chance.random() < 0.5):
            time.sleep(chance.choice([0, 0, 0.1, 1.0]))
            continue
        for one in running:
            wrong += one.end(figures, at_once=at_once)
        running = []
    wrong += ledger.look(figures)
    last = start(base, ledger, chance, "another machine", attempt=1, dies=False)
    wrong += last.end(figures, at_once=at_once)
    wrong += ledger.look(figures)
    missing = [key for line in last.lines if "saved" in line if (key := line["key"]) not in ledger.committed]
    if missing and any(line.get("flushed") for line in last.lines):
        figures["missing"] += len(missing)
        wrong.append(f"saved and flushed, and not there: {missing}")
    figures["checkpoints"] += len(ledger.committed)
    return wrong


def play_flow(base: Path, chance: random.Random, figures: Counter[str]) -> list[str]:
    """One round of Metaflow's own tasks, on a local datastore."""
    workspace, wrong = Workspace(base), list[str]()
    dies = chance.randint(1, 3)
    run = first_run(workspace, SAVES=4, DIES_AFTER=dies)
    reached = dies
    figures["starts"] += 1
    for machine_ in range(chance.randint(1, 2)):
        dies = chance.randint(1, 3)
        started = Started(workspace, run, f"machine-{machine_}", SAVES=4, DIES_AFTER=dies)
        started.finish()
        figures["starts"] += 1
        if not started.said("BEGAN") or started.began_from != reached:
            figures["not from the newest"] += 1
            wrong.append(f"it did not begin from {reached}: {started.output[-2000:]}")
        reached += dies
    retry = Started(workspace, run, "retry", attempt=1, SAVES=1)
    figures["starts"] += 1
    if retry.finish() or retry.began_from != reached:
        figures["not from the newest"] += 1
        wrong.append(f"the retry did not begin from {reached}: {retry.output[-2000:]}")
    metadata = (workspace.store / ".metaflow").glob("mf.checkpoints/checkpoints/metadata/**/*.metadata")
    count = len(list(metadata))
    if count != reached + 1:
        figures["missing"] += reached + 1 - count
        wrong.append(f"{count} checkpoints instead of {reached + 1}")
    figures["checkpoints"] += count
    workspace.kill_leftovers()
    return wrong


def _end_agents(home: Path) -> None:
    """Those of machines that were killed go on for as long as they have something to store."""

    def left() -> list[int]:
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if f"{home}/".encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and int(pid) != os.getpid():
                    found.append(int(pid))
        return found

    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stores(base: Path, patch: pytest.MonkeyPatch) -> Iterator[dict[str, StoreSpec]]:
    """One of each kind."""
    with FaultServer(MemoryS3()) as server, s3_target(base, patch) as (ignoring, _):
        keeping = StoreSpec(
            "metaflow-s3", f"s3://{BUCKET}/stress", {"client_params": S3Server(server.url, os.getpid()).client_params}
        )
        yield dict(zip(STORES, (StoreSpec("local", str(base / "store")), keeping, ignoring), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--flows", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--machine")
    options = parser.parse_args(arguments)
    if options.machine:
        return machine(json.loads(options.machine))
    print(f"seed {options.seed}", flush=True)
    figures = {name: Counter[str]() for name in (*STORES, "flows")}
    bad = done = 0
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="async-ckpt-twice-", ignore_cleanup_errors=True) as text,
        contextlib.suppress(KeyboardInterrupt),  # What was done until then is recorded.
        pytest.MonkeyPatch.context() as patch,
        stores(Path(text), patch) as specs,
    ):
        for done in range(options.rounds + options.flows):
            kind = STORES[done % len(STORES)] if done < options.rounds else "flows"
            seed, home = f"{options.seed}.{done}", Path(text, f"round-{done}")
            home.mkdir()
            if kind == "flows":
                wrong = play_flow(home, random.Random(seed), figures[kind])
            else:
                wrong = play(home, specs[kind], str(done), random.Random(seed), figures[kind])
            figures[kind]["rounds"] += 1
            bad += bool(wrong)
            for what in wrong:
                print(f"WRONG round {done} ({kind}, seed {seed}): {what}", flush=True)
            _end_agents(home)
            shutil.rmtree(home, ignore_errors=True)
            if done % 10 == 9 or wrong:
                seconds = time.monotonic() - began
                print(f"{seconds:7.0f} s: {done + 1} rounds, {bad} with anything wrong", flush=True)
    rows = [_row(name, counts) for name, counts in figures.items() if counts]
    for row in rows:
        print(row, flush=True)
    results.record("twice", results.command(COMMAND, options.seed), rows, [f"Rounds with anything wrong: {bad}."])
    return int(bad > 0)


def _row(name: str, counts: Counter[str]) -> dict[str, Any]:
    columns = ("rounds", "starts", "killed", "resumed", "checkpoints")
    wrong = ("overwritten", "damaged", "gone", "missing", "not from the newest", "saved twice under one key")
    return {"store": name, **{column: counts[column] for column in (*columns, *wrong)}}


if __name__ == "__main__":
    sys.exit(main())

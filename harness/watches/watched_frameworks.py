"""Runs of real training frameworks that are watched: what each finished, and whether just that was committed, once.

Each committed checkpoint is loaded from the store, compared with what the trainer had finished, and loaded by the
framework itself. A trainer may be killed at a random moment; a second attempt then goes on from what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.watch import Watch, WatchOptions
from harness.tasks.task import Task
from harness.watches import framework_trainers as trainers

#: What existed for so long must be committed, in seconds.
EXISTED_S = 1.0


@dataclass
class Finished:
    """What a trainer said that it had finished: name, files by digest, and from when to when it was surely there."""

    name: str
    files: dict[str, str]
    since: float
    until: float = float("inf")

    def is_in(self, files: dict[str, str]) -> bool:
        """Whether these are its files; what says which is the newest may be there as well."""
        return self.files.items() <= files.items()


@dataclass
class Run:
    """One run of one kind of trainer."""

    finished: list[Finished] = field(default_factory=list)
    committed: list[tuple[str, dict[str, str], Path]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    kills: int = 0

    def missing(self) -> list[str]:
        """Names of what existed for long enough and is not committed."""
        return [
            item.name
            for item in self.finished
            if item.until - item.since >= EXISTED_S and not any(map(item.is_in, self.contents(item.name)))
        ]

    def contents(self, name: str) -> list[dict[str, str]]:
        return [files for path, files, _ in self.committed if path == name]

    def twice(self) -> list[str]:
        """Names of what is committed more than once with the same content."""
        found = Counter((path, tuple(sorted(files.items()))) for path, files, _ in self.committed)
        return [path for (path, _), count in found.items() if count > 1]

    def unknown(self) -> list[tuple[str, Path]]:
        """What is committed and was never said to be finished."""
        return [
            (path, folder)
            for path, files, folder in self.committed
            if not any(item.name == path and item.is_in(files) for item in self.finished)
        ]


def train(python: str, kind: str, out: Path, run: Run, kill_after: float | None, options: list[str]) -> None:
    """Run a trainer to its end, or kill it after it has finished so many (and a part of the next)."""
    command = [python, trainers.__file__, kind, str(out), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        begun: list[Finished] = []
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                note(json.loads(line), run)
            if "begin" in line:
                begun = list(run.finished)
            if kill_after is not None and len(begun) >= kill_after:
                time.sleep(kill_after % 1 * 0.5)
                process.send_signal(signal.SIGKILL)
                run.kills += 1
                break
        process.wait()
    assert kill_after is not None or process.returncode == 0, f"{kind} failed: {' '.join(command)}"


def note(fact: dict[str, Any], run: Run) -> None:
    """Take in what a trainer says. What is finished may be removed, or written anew, from the next beginning on."""
    if "begin" in fact:
        for item in run.finished:
            item.until = min(item.until, fact["at"]) if item.until == float("inf") else item.until
    elif "finished" in fact:
        run.finished.append(Finished(fact["finished"], fact["files"], fact["at"]))


def watched(
    python: str, kind: str, task: Task, run: Run, options: argparse.Namespace, kill_after: float | None
) -> None:
    """Train and watch, in one attempt or in two, and read back what came to the store."""
    out = task.work / kind
    pattern = trainers.KINDS[kind].pattern
    given = WatchOptions(pattern=pattern, name=kind, settle=options.settle)
    for attempt in range(1 if kill_after is None else 2):
        checkpointer = task.start(attempt=attempt, report=run.lines.append)
        checkpointer.spool.new_work_directory()
        began = checkpointer.spool.attempt_began_ns()
        watch = Watch(checkpointer, out, given, Config.from_env(), began_ns=began)
        killed = kill_after if not attempt else None
        first = 1 + max((step_of(item.name) for item in run.finished), default=0)
        arguments = [str(options.count), "--pause", str(options.pause), "--first", str(first)]
        train(python, kind, out, run, killed, arguments)
        watch.stop(complete=killed is None)
        checkpointer.flush(600)
        if killed is None:
            read_back(task, checkpointer, kind, run)
        checkpointer.close(clean=killed is None)


def step_of(name: str) -> int:
    """The number of a checkpoint, 0 where its name has none."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0


def read_back(task: Task, checkpointer: Checkpointer, kind: str, run: Run) -> None:
    """Load all that is committed."""
    for number, data in enumerate(reversed(checkpointer.list(name=kind))):
        if data["state"] != "COMMITTED":
            run.lines.append(f"{data['metadata']['path']} is {data['state']}")
            continue
        folder = task.base / "loaded" / f"{kind}-{number}"
        checkpointer.load(data, str(folder))
        files = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
        run.committed.append((data["metadata"]["path"], files, folder))


def load_with_framework(python: str, kind: str, run: Run) -> list[str]:
    """Names of committed ones that the framework does not load, or that hold something else."""
    asked = {str(folder): path for path, _, folder in run.committed}
    text = "".join(f"{folder} {step_of(path)}\n" for folder, path in asked.items())
    done = subprocess.run(
        [python, trainers.__file__, kind, "--verify"], input=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(asked), f"{kind} was not read back"
    for item in found:
        if not item["whole"]:
            print(f"  {kind}: {asked[item['folder']]} cannot be loaded: {item.get('why')}", flush=True)
    return [asked[item["folder"]] for item in found if not item["whole"]]


def row_of(kind: str, runs: list[Run], halves: list[str]) -> dict[str, Any]:
    lasting = [item for run in runs for item in run.finished if item.until - item.since >= EXISTED_S]
    return {
        "trainer": kind, "finished": sum(len(run.finished) for run in runs), "existed for 1 s": len(lasting),
        "committed": sum(len(run.committed) for run in runs), "missing": sum(len(run.missing()) for run in runs),
        "twice": sum(len(run.twice()) for run in runs), "half": len(halves), "kills": sum(run.kills for run in runs),
    }  # fmt: skip


def all_runs(python: str, kind: str, options: argparse.Namespace, chance: random.Random) -> dict[str, Any]:
    """A line of the table."""
    runs, halves = [], []
    for _ in range(options.runs):
        run = Run()
        kill_after = chance.uniform(1, options.count - 1) if options.kill else None
        with tempfile.TemporaryDirectory(prefix="watch-") as base, pytest.MonkeyPatch.context() as patch:
            task = Task(Path(base), patch)
            try:
                watched(python, kind, task, run, options, kill_after)
                halves += load_with_framework(python, kind, run)
            finally:
                task.close()
        runs.append(run)
        for line in run.lines:
            if options.verbose or "is saved as" not in line:
                print(f"  {kind}: {line}", flush=True)
        for what, names in (("missing", run.missing()), ("twice", run.twice())):
            if names:
                print(f"  {kind}: {what}: {', '.join(names)}", flush=True)
        if not options.kill:
            halves += [path for path, _ in run.unknown()]
            for path, folder in run.unknown():
                print(f"  {kind}: {path} is committed, and not what was finished ({folder})", flush=True)
    return row_of(kind, runs, halves)

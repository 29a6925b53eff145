"""Sends signals to a task at random moments, and sees that it neither hangs nor has anything wrong in the store."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from async_ckpt.config import Config
from async_ckpt.errors import CheckpointError
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.log import write_lines_with
from async_ckpt.task.checkpointer import Checkpointer
from harness.flow_runs.environments import with_our_modules
from harness.kills.interrupted import LIMIT_S, OURS, THEIRS, why_torn
from harness.tasks.task import TASK

#: What a task is sent, most often what saves.
_SIGNALS = (
    [signal.SIGUSR1] * 4 + [signal.SIGINT] * 2 + [signal.SIGUSR2, signal.SIGVTALRM, signal.SIGHUP, signal.SIGALRM]
)  # fmt: skip

#: Between two signals, in seconds: shorter and longer than a save.
_PAUSES_S = (0.0, 0.01)

#: How often the next signal does not wait for the handler of the one before.
_ON_TOP = 0.3

#: Of the kind of a hang: that a task does nothing for so many seconds, where each thing it does has a shorter limit.
_HUNG_S = 2 * LIMIT_S

#: After so many seconds one that was told to end is told so again.
_AGAIN_S = 5.0


class Hung(Exception):
    """A task does nothing any more."""


def run(base: Path, lives: int, signals: int, seed: int, figures: Counter[str]) -> list[str]:
    """So many attempts of one task, each with so many signals and a SIGTERM as the last. Returns what was wrong."""
    chance = random.Random(seed)
    problems: list[str] = []
    for attempt in range(lives):
        command = [
            sys.executable,
            "-m",
            "harness.kills.interrupted",
            str(base),
            str(attempt),
            str(chance.getrandbits(30)),
        ]
        with (
            open(base / f"stderr-{attempt}", "wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=with_our_modules()) as task,
        ):
            try:
                _live(task, signals, chance, figures)
            except Hung as hung:
                figures["hung"] += 1
                problems.append(f"attempt {attempt}: {hung}; {_stacks(task, base / f'stderr-{attempt}')}")
                task.kill()
        said = (base / f"stderr-{attempt}").read_text(errors="replace").rstrip()
        # Interrupted before or after all that catches it, it ends as any program does.
        if task.returncode > 0 and not said.splitlines()[-1].endswith(("KeyboardInterrupt", "Enough")):
            problems.append(f"attempt {attempt} ended with {task.returncode}: {said[-4000:]}")
        figures["lives"] += 1
    saved = (base / "saved").read_text().splitlines() if (base / "saved").exists() else []
    figures["saves"] += len(saved)
    problems += (base / "wrong").read_text().splitlines() if (base / "wrong").exists() else []
    return problems + _look(base, lives, dict(line.split() for line in saved), figures)


def _live(task: subprocess.Popen[bytes], signals: int, chance: random.Random, figures: Counter[str]) -> None:
    _wait(task, figures)
    for _ in range(signals):
        if task.poll() is not None:  # Interrupted where nothing of it could catch that.
            return
        task.send_signal(chance.choice(_SIGNALS))
        figures["signals"] += 1
        if chance.random() >= _ON_TOP:
            _wait(task, figures)
        time.sleep(chance.uniform(*_PAUSES_S))
    end = time.monotonic() + _HUNG_S
    again = 0.0
    figures["signals"] += 1
    while task.poll() is None:
        if (now := time.monotonic()) > end:
            raise Hung("it does not end")
        if now > again:  # Its handler may be interrupted in its first instruction, by one that raises.
            task.send_signal(signal.SIGTERM)
            again = now + _AGAIN_S
        _wait(task, figures)


def _wait(task: subprocess.Popen[bytes], figures: Counter[str]) -> None:
    """Until it has done anything more, and then for what it has done."""
    assert task.stdout is not None
    if not select.select([task.stdout], [], [], _HUNG_S)[0]:
        raise Hung(f"nothing came for {_HUNG_S:g} s")
    said = os.read(task.stdout.fileno(), 1 << 16)
    figures["handlers that interrupted this package"] += said.count(OURS)
    figures["handlers that interrupted something else"] += said.count(THEIRS)


def _stacks(task: subprocess.Popen[bytes], errors: Path) -> str:
    """Where it hangs: its interpreter says so as it dies."""
    task.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        task.wait(10)
    return errors.read_text(errors="replace")[-4000:]


def _look(base: Path, attempt: int, saved: dict[str, str], figures: Counter[str]) -> list[str]:
    """Let a last attempt bring in what is left, and compare all that is in the store with what was saved."""
    problems = []
    store = StoreSpec("local", str(base / "store"))
    last = Checkpointer.start(
        str(base / "spools"), replace(TASK, attempt=attempt), store, Config(local_fsync=False), uploader="process"
    )
    try:
        said: list[str] = []
        write_lines_with(said.append)
        last.flush(300.0)
        problems += [line for line in said if "is not in the store" in line]
        stored = {f"{one.attempt}.{one.name}.{one.version_id}": one for one in last.list()}
    except CheckpointError as error:
        return [*problems, f"at the end: {error}"]
    finally:
        last.close(clean=True)
    problems += [f"{identity} is not in the store" for identity in saved if identity not in stored]
    for identity, one in stored.items():
        known = saved.get(identity)
        why = why_torn(os.path.join(store.root, one["key"]), int(known) if known is not None else None)
        if why:
            problems.append(f"{identity}: {why}")
    figures["checkpoints compared"] += len(stored)
    return problems


def rounds(signals: int, seed: int, figures: Counter[str], *, lives: int = 10, each: int = 50) -> list[str]:
    """Tasks of ``lives`` attempts with ``each`` so many signals, until there were ``signals`` of them."""
    problems: list[str] = []
    while figures["signals"] < signals and not problems:
        with tempfile.TemporaryDirectory(prefix="async-ckpt-interrupted-") as base:
            problems = run(Path(base), lives, each, seed, figures)
        seed += 1
    return problems

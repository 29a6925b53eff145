"""Runs ``examples/ddp_flow.py`` and compares its loss curves, float for float."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

FLOW = REPOSITORY / "examples" / "ddp_flow.py"
RANKS = 2
MOMENTS = ("forward", "before-save", "after-save")
#: What was killed never saves its part: the others are not to wait long for it.
SETTINGS = {"METAFLOW_ASYNC_CKPT_COLLECTIVE_GRACE_S": "2"}
#: Each attempt imports torch in three processes, on whatever the machine has left.
_ATTEMPT_S = 120.0
_STEP_S = 0.5

#: Why it cannot run here; "" if it can. torch is not among the test dependencies: it is large.
MISSING = "" if importlib.util.find_spec("torch") else "torch is not installed (its wheel for CPUs is enough)"


@dataclass(frozen=True)
class Kill:
    """A SIGKILL of a rank."""

    rank: int
    step: int
    moment: str

    def __str__(self) -> str:
        return f"{self.rank}@{self.step}:{self.moment}"

    def all_have_saved(self, every: int) -> int:
        """The last step that all ranks have saved for sure by then; 0: none.

        A rank that computes a step knows that the others have begun the one before, and thus saved what came before
        that. One that has saved does not know whether they have.
        """
        done = self.step - 2 if self.moment == "forward" else self.step - 1
        return max(done - done % every, 0)


@dataclass(frozen=True)
class Line:
    """What a rank wrote down after a step."""

    attempt: int
    rank: int
    step: int
    loss: float


@dataclass(frozen=True)
class Training:
    """A run that ended well.

    ``resumed_at`` has the step that each attempt went on from (0: from the beginning), ``losses`` and ``weights`` what
    each rank had at the end, ``lines`` what the ranks wrote down in all attempts.
    """

    resumed_at: list[int]
    losses: list[list[float]]
    weights: list[str]
    lines: list[Line]
    output: str = ""

    def curve(self) -> dict[tuple[int, int], float]:
        """(rank, step) → loss, as it came through the checkpoints."""
        return {(rank, n): loss for rank, curve in enumerate(self.losses) for n, loss in enumerate(curve, 1)}


def train(
    workspace: Workspace, log: Path, kills: Sequence[Kill] = (), *, steps: int, every: int, seed: int = 0
) -> Training:
    """Run the flow to its end, killed once in each of its first attempts; each rank writes its losses below ``log``."""
    log.mkdir()
    given = {"kill": ",".join(map(str, kills)) or "never", "steps": steps, "every": every, "seed": seed, "log": log}
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    running = workspace.start_flow(FLOW, "run", "--ranks", str(RANKS), *arguments, env=SETTINGS)
    run = running.finish((len(kills) + 1) * (_ATTEMPT_S + steps * _STEP_S))
    assert run.returncode == 0, run.output
    (task,) = run.tasks()["start"]
    attempts = re.findall(r"Attempt \d+ goes on after step (\d+)", run.output)
    assert len(attempts) == task.attempt + 1, run.output
    found = task.artifacts
    return Training([*map(int, attempts)], found["losses"], found["weights"], _read(log), run.output)


def _read(log: Path) -> list[Line]:
    lines = []
    for path in sorted(log.glob("rank-*.jsonl")):
        rank = int(path.stem.removeprefix("rank-"))
        lines += [Line(rank=rank, **json.loads(text)) for text in path.read_text().splitlines()]
    return lines


def largest_difference(training: Training, reference: Training) -> float:
    """Between the losses of a training and those of ``reference``: of what its attempts computed, steps that were
    computed again included, and of the history that came through the checkpoints. Infinite where one is missing.
    """
    wanted, found = reference.curve(), training.curve()
    computed = {(line.rank, line.step) for line in training.lines}
    if not (wanted.keys() == found.keys() == computed):
        return math.inf
    differences = [abs(found[at] - wanted[at]) for at in wanted]
    differences += [abs(line.loss - wanted[line.rank, line.step]) for line in training.lines]
    # A comparison with what is not a number is never true: max() could pass it over.
    return math.inf if any(map(math.isnan, differences)) else max(differences)

"""Runs a flow that trains, kills it where it is told to, and compares its loss curves, float for float.

The flow knows nothing of this (``recorded/sitecustomize.py`` is what writes its losses down), so it may be the very
example of a page. It has ``@retry`` for as many kills as it gets, and one step that trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.flow_runs.metaflow_env import REPOSITORY, FlowRun, Workspace

_RECORDED = Path(__file__).parent / "recorded"
#: Imports of a framework in two or three processes, on whatever the machine has left.
_ATTEMPT_S = 150.0


@dataclass(frozen=True)
class Kill:
    """A SIGKILL of the process that trains: ``after_s`` seconds after it has written down the loss of its step number
    ``line``, counted from 1 in each process.

    ``attempt`` is Metaflow's; ``start`` counts the starts of the ranks by torchrun in it; ``rank`` is that of the
    process.
    """

    line: int
    after_s: float = 0.0
    attempt: int = 0
    start: int = 0
    rank: int = 0


@dataclass(frozen=True)
class Life:
    """What the ranks computed that were started together: rank → the loss of each of its steps, exactly."""

    name: str
    losses: dict[int, list[str]]


@dataclass(frozen=True)
class Training:
    """A run that ended well, and its lives, the first one first."""

    run: FlowRun
    lives: list[Life]


def by_torchrun(times: int) -> dict[str, str]:
    """Variables with which torchrun starts its ranks again so many times in one attempt.

    The second one is what docs/subprocesses.md says: without it the ranks may find addresses of dead ones.
    """
    return {"PET_MAX_RESTARTS": str(times), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def train(
    workspace: Workspace,
    flow: Path,
    python: str,
    kills: Sequence[Kill] = (),
    *,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Training:
    """Run a flow to its end, killed as told; each call in a workspace of its own.

    Parameters
    ----------
    flow : Path
        Its file, e.g. in ``examples/``.
    python : str
        The interpreter, e.g. of ``frameworks.find_or_make_with_ours()``.
    arguments : sequence of str
        What comes after ``run``.
    env : mapping, optional
        Further variables; what is in a ``PYTHONPATH`` is found as well.
    """
    curves = workspace.root / "curves"
    curves.mkdir()
    told = [[f"{kill.attempt}.{kill.start}.{kill.rank}", kill.line, kill.after_s] for kill in kills]
    paths = [str(_RECORDED), *filter(None, [(env or {}).get("PYTHONPATH")])]
    settings = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # A process that crashes as it ends says where.
        **(env or {}),
        "PYTHONPATH": os.pathsep.join(paths),
        "CURVES": str(curves),
        "CURVE_KILLS": json.dumps(told),
    }
    try:
        running = workspace.start_flow(flow, "run", *arguments, python=python, env=settings)
        run = running.finish(_ATTEMPT_S * (len(kills) + 1))
    finally:
        workspace.kill_leftovers()
    assert run.returncode == 0, run.output
    return Training(run, _lives(curves))


def _lives(curves: Path) -> list[Life]:
    found: dict[tuple[int, int], dict[int, list[str]]] = {}
    for path in curves.iterdir():
        attempt, start, rank = map(int, path.name.split("."))
        found.setdefault((attempt, start), {})[rank] = path.read_text().split()
    return [Life(f"{attempt}.{start}", found[attempt, start]) for attempt, start in sorted(found)]


def resumed_from(killed: Training, whole: Training) -> list[int]:
    """After how many steps each life but the first went on, where all its losses are those of the uninterrupted run.

    Raises
    ------
    AssertionError
        A loss differs, a step was left out, ranks do not go on together, or the last life did not come to the end.
    """
    assert len(whole.lives) == 1, f"the uninterrupted run was interrupted:\n{whole.run.output}"
    (reference,) = whole.lives
    assert killed.lives[0].name == "0.0", killed.run.output
    begins: list[int] = []
    reached = dict.fromkeys(reference.losses, 0)
    for life in killed.lives:
        assert life.losses.keys() <= reference.losses.keys(), life
        begin = {rank: _find(losses, reference.losses[rank]) for rank, losses in life.losses.items()}
        assert len(set(begin.values())) == 1, f"life {life.name}: ranks begin with different steps: {begin}"
        begins.append(next(iter(begin.values())))
        # A rank may die in the step after the checkpoint that another one has saved meanwhile.
        assert begins[-1] <= max(reached.values()), f"life {life.name} begins with {begins[-1]}: {reached} were done"
        for rank, losses in life.losses.items():
            reached[rank] = begins[-1] + len(losses)
    assert reached == {rank: len(losses) for rank, losses in reference.losses.items()}, killed.run.output
    assert begins[0] == 0
    return begins[1:]


def _find(losses: list[str], reference: list[str]) -> int:
    """Where in the uninterrupted curve these losses are."""
    assert len(set(reference)) == len(reference), "two steps have the same loss: they cannot be told apart"
    assert losses[0] in reference, f"no step of the uninterrupted run had the loss {losses[0]}: {reference}"
    begin = reference.index(losses[0])
    expected = reference[begin : begin + len(losses)]
    differing = [number for number, pair in enumerate(zip(losses, expected, strict=False)) if pair[0] != pair[1]]
    assert losses == expected, f"from step {begin} on; differing: {differing or 'more steps than there are'}"
    return begin


def example(name: str) -> Path:
    """The flow of a page: ``examples/<name>_flow.py``."""
    return REPOSITORY / "examples" / f"{name}_flow.py"

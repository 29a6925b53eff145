"""What benchmarks and stress programs hand to the report: one JSON file a section under ``stress/bench/results/``."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def record(section: str, command: str, rows: list[dict[str, Any]], notes: Sequence[str] = (), **more: Any) -> None:
    """Keep a section's figures for ``BENCHMARKS.md``; what was recorded before under that name is replaced.

    Parameters
    ----------
    section : str
        ``save``, ``in_place``, ``overhead``, ``threshold``, ``torn``, ``kills``, ``many_writers``, or a new one,
        which is shown at the end under its own name.
    command : str
        What was run, as a user would type it at the repository's root.
    rows : list of dict
        One a line of the table; the keys of the first are the columns.
    notes : sequence of str
        Sentences to stand below the table.
    more
        Whatever a plot needs and the page does not show.
    """
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, f"{section}.json")
    with open(f"{path}.new", "w") as file:
        json.dump({**more, "section": section, "command": command, "rows": rows, "notes": list(notes)}, file, indent=1)
    os.rename(f"{path}.new", path)


def command(program: str, seed: int | None = None) -> str:
    """What was typed, for the report, which so says what was left out of a run; with the seed if it was drawn."""
    given = sys.argv[1:]
    if seed is not None and "--seed" not in given:
        given += ["--seed", str(seed)]
    return shlex.join([*program.split(), *given])


def read(section: str) -> dict[str, Any] | None:
    """What was recorded; None if nothing was."""
    try:
        with open(os.path.join(RESULTS, f"{section}.json")) as file:
            data: dict[str, Any] = json.load(file)
            return data
    except FileNotFoundError:
        return None


def recorded() -> list[str]:
    """Names of all recorded sections."""
    return sorted(name.removesuffix(".json") for name in os.listdir(RESULTS) if name.endswith(".json"))


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between. ``share`` is between 0 and 1."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)


def summary(seconds: Sequence[float], prefix: str = "") -> dict[str, Any]:
    """``n``, and ``p50_ms``, ``p99_ms``, ``max_ms`` (milliseconds)."""
    figures = {"p50_ms": percentile(seconds, 0.5), "p99_ms": percentile(seconds, 0.99), "max_ms": max(seconds)}
    return {f"{prefix}n": len(seconds), **{prefix + key: value * 1000 for key, value in figures.items()}}

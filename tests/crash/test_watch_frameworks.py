"""The short version of ``stress.watch_frameworks``."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import pytest

from harness.flow_runs import frameworks
from harness.watches import watched_frameworks
from harness.watches.watched_frameworks import Finished, Run


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"runs": 1, "count": 3, "pause": 0.3, "settle": 2.0, "kill": False, "verbose": True, **given}
    )


@pytest.mark.parametrize("kill", [pytest.param(False, marks=pytest.mark.long), True])
def test_pairs_are_committed_once_and_none_is_half(kill: bool) -> None:
    row = watched_frameworks.all_runs(sys.executable, "pairs", options(kill=kill), random.Random(1))
    assert (row["twice"], row["half"], row["kills"]) == (0, 0, int(kill))
    assert row["committed"] >= 1


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["hf", "lightning", "keras", "dcp", "deepspeed", "orbax", "tensorflow"])
def test_checkpoints_of_frameworks_are_committed_once_and_none_is_half(kind: str) -> None:
    python = frameworks.find_or_make_frameworks()
    row = watched_frameworks.all_runs(python, kind, options(settle=5.0, pause=1.0), random.Random(1))
    assert (row["twice"], row["half"]) == (0, 0)
    assert row["committed"] >= 1


def test_what_is_missing_there_twice_or_unknown_is_counted() -> None:
    """The tool can fail."""
    whole, half = {"a": "1", "b": "2"}, {"a": "1"}
    run = Run([Finished("x", whole, 0.0, 1.0), Finished("x", {"a": "3"}, 1.0, 1.5), Finished("y", half, 0.0, 5.0)])
    assert run.missing() == ["x", "y"], "but for what did not exist for a second"
    run.committed = [
        ("x", {**whole, "latest": "3"}, Path()),
        ("x", half, Path()),
        ("y", half, Path()),
        ("y", half, Path()),
    ]
    assert run.missing() == []
    assert run.twice() == ["y"]
    assert [path for path, _ in run.unknown()] == ["x"]

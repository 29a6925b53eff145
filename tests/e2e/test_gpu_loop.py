"""The short version of ``python -m stress.gpu_loop``: a tiny model, and whatever is restored is what was saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.flow_runs.metaflow_env import REPOSITORY

#: The first of them may make the environments.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def rows_of(out: Path, *options: str) -> dict[str, list[dict[str, Any]]]:
    """What the program measured; it fails if something restored is not what was saved."""
    command = [sys.executable, "-m", "stress.gpu_loop", "--parameters", "5000000", "--tokens", "64", "--out", str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    run = subprocess.run(
        [*command, *options],
        cwd=REPOSITORY,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    rows: dict[str, list[dict[str, Any]]] = json.loads(out.read_text())
    return rows


def test_each_way_to_save_gives_back_what_was_saved_to_the_bit(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "out", "--only", "blocked", "--rounds", "1")
    assert {row["saver"]: row["bit-equal"] for row in rows["blocked"]} == {
        "copy_ of the tensors": "", "torch.save": True, "torch.save + save()": True,
        "torch.save + metaflow-checkpoint": True, "save_state, sync": True, "save_state, async": True,
        "DCP async_save, thread, as it comes": True, "DCP async_save, thread, staged by a thread": True,
        "DCP async_save, process, staged by a thread": True, "DCP async_save, process, into the store": True,
        "torch_checkpointing, async": True,
    }  # fmt: skip


def test_steps_memory_and_restores_are_told(tmp_path: Path) -> None:
    small = [
        "--threads",
        "1",
        "--blocks",
        "1",
        "--every",
        "3",
        "--checkpoints",
        "6",
        "--restores",
        "1",
        "--stores",
        "local",
    ]
    only = ["--only", "steps,memory,restore", "--savers", "async", "--peer", "none"]
    rows = rows_of(tmp_path / "out", *small, *only)
    assert [(row["checkpoints"], row["steps"]) for row in rows["steps"]] == [
        ("no checkpoints", 15), ("save_state, async", 15),
    ]  # fmt: skip
    assert int(rows["steps"][1]["under way"].rstrip("%")) > 10, "the store is as slow as it was told to be"
    (memory,) = rows["memory"]
    assert (memory["saver"], memory["checkpoints"]) == ("save_state, async", 6)
    assert memory["staged, MB more"] > 0
    ways = {row["way"]: row["bit-equal"] for row in rows["restore"]}
    assert all(ways.values())
    assert {"load_state(into=…)", "load_state()", "load(), torch.load", "torch.load of a local file"} <= ways.keys()

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
    small = ["--threads", "1", "--blocks", "1", "--every", "3", "--checkpoints", "6", "--savers", "sync,async"]
    rows = rows_of(tmp_path / "out", "--only", "steps,memory", *small)
    assert [(row["checkpoints"], row["steps"]) for row in rows["steps"]] == [
        ("no checkpoints", 6), ("save_state, sync", 6), ("save_state, async", 6),
    ]  # fmt: skip
    assert [(row["saver"], row["checkpoints"]) for row in rows["memory"]] == [
        ("save_state, sync", 6),
        ("save_state, async", 6),
    ]
    assert all(row["shared, MB more"] > 0 for row in rows["memory"])

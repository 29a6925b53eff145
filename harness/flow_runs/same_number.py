"""Runs a flow's task again under the number that it has had before, as a workflow engine does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.flow_runs.metaflow_env import FLOWS, Workspace

FLOW = FLOWS / "again_flow.py"


class Started:
    """One start of the task ``start`` of a run, on a machine of its own.

    Parameters
    ----------
    run : str
        The run's number.
    machine : str
        Its disk has this name.
    """

    def __init__(self, workspace: Workspace, run: str, machine: str, *, attempt: int = 0, **settings: object) -> None:
        spool = workspace.root / machine
        spool.mkdir(exist_ok=True)
        given = {"METAFLOW_ASYNC_CKPT_SPOOL_DIR": str(spool), **{key: str(value) for key, value in settings.items()}}
        command = [
            sys.executable, str(FLOW), "--no-pylint", "--quiet", "--metadata", "local", "--datastore",
            workspace.env["METAFLOW_DEFAULT_DATASTORE"], "step", "start", "--run-id", run, "--task-id", "1",
            "--input-paths", f"{run}/_parameters/0", "--retry-count", str(attempt), "--max-user-code-retries", "2",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, env=workspace.environment(extra=given), cwd=workspace.cwd, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = ""

    def finish(self) -> int:
        """Wait for its end; returns the exit status."""
        self.output, _ = self._process.communicate(timeout=300)
        return self._process.returncode

    def said(self, word: str) -> list[dict[str, Any]]:
        """What it said after this word, line by line."""
        lines = [line.partition(f"{word} ") for line in self.output.splitlines()]
        return [json.loads(rest) for before, found, rest in lines if found and not before]

    @property
    def began_from(self) -> int:
        return int(self.said("BEGAN")[0]["from"])


def first_run(workspace: Workspace, **settings: object) -> str:
    """Run the flow until its task dies; returns the run's number."""
    environment = {"METAFLOW_ASYNC_CKPT_SPOOL_DIR": str(workspace.root / "first")}
    os.makedirs(workspace.root / "first", exist_ok=True)
    flow = workspace.run_flow(
        Path(FLOW), succeeds=False, env={**environment, **{key: str(value) for key, value in settings.items()}}
    )
    return flow.pathspec.split("/")[1]

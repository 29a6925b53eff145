"""``async-ckpt`` from a shell script in a step, and outside of any task."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from async_ckpt.config import ENV_SPOOL
from harness.flow_runs.metaflow_env import Workspace


def test_a_shell_script_in_a_step_saves_lists_loads_and_flushes_and_a_shell_outside_reads(local: Workspace) -> None:
    run = local.run_flow("shell_flow")
    (task,) = run.tasks()["start"]
    files, parsed = task.artifacts["files"], task.artifacts["json"]

    assert parsed["first.json"]["name"] == "shell"
    assert parsed["first.json"]["metadata"] == {"epoch": 1}
    assert parsed["second.json"]["storage_format"] == "tar"
    assert parsed["second.json"]["state"] == "COMMITTED"
    assert "async_ckpt" not in files["third.txt"]
    assert ": mf.checkpoints/checkpoints/artifacts/ShellFlow/start/" in files["third.txt"]
    assert parsed["status.json"]["failed_count"] == 0
    assert parsed["status.json"]["pending"] + parsed["status.json"]["committed"] == 4
    assert "pending         0 (0 B)" in files["status.txt"]
    assert re.search(
        r"^would be lost   \d+ s of work with this machine, \d+ s with the process$", files["status.txt"], re.M
    )
    listed = parsed["list.json"]
    assert [(c["name"], c["version_id"], c["state"]) for c in listed] == [
        ("mfchckpt", 3, "COMMITTED"), ("shell", 2, "COMMITTED"), ("shell", 1, "COMMITTED"), ("task", 0, "COMMITTED"),
    ]  # fmt: skip
    rows = files["list.txt"].splitlines()
    assert rows[0].split() == ["STATE", "ATTEMPT", "VERSION", "NAME", "SIZE", "CREATED", "EPOCH", "KEY"]
    assert [row.split()[3] for row in rows[1:]] == ["shell", "shell"]
    assert files["head.txt"].split() == rows[0].split()
    assert files["back/deep/file"] == "one\n"
    assert parsed["load.json"]["key"] == parsed["first.json"]["key"]

    # Mistakes: on stderr in one line, as JSON where asked for, and in the exit status.
    assert files["error.status"].split() == ["1", "2", "2"]
    assert "no-such-file" in files["error.txt"]
    assert "'a/b' cannot be the name of a checkpoint" in files["error.txt"]
    assert "Traceback" not in files["error.txt"]
    assert parsed["error.json"]["kind"] == "UsageError"

    # Saved without becoming the latest, and the single file after it became it.
    assert task.artifacts["_task_latest_checkpoint"]["version_id"] == 3

    outside = local.run_command(["async-ckpt", "list", "--task", task.pathspec, "--name", "shell", "--json"])
    assert [c["key"] for c in json.loads(outside.stdout)] == [parsed["second.json"]["key"], parsed["first.json"]["key"]]
    local.run_command(["async-ckpt", "load", parsed["second.json"]["key"], "out"])
    assert (local.cwd / "out/deep/file").read_text() == "two\n"

    for command in (["save", "x"], ["list"], ["status"], ["flush"]):
        refused = local.run_command(["async-ckpt", *command], check=False)
        assert refused.returncode == 2
        assert "does not belong to a step with @checkpoint" in refused.stderr
    missing = local.run_command(
        ["async-ckpt", "load", parsed["first.json"]["key"].replace(".0.shell.1", ".0.shell.9"), "x"], check=False
    )
    assert missing.returncode == 1
    assert "There is no such checkpoint" in missing.stderr
    local.assert_clean()


def test_who_reads_no_further_gets_no_traceback_and_the_exit_status_stays(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "async_ckpt.cli", "list", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != ENV_SPOOL}
    with os.fdopen(writer, "wb") as closed:
        ended = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path, env=environment
        )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "does not belong to a step with @checkpoint" in ended.stderr

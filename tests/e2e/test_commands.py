"""The commands for people who look at what is in the store, on the command line and on the flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness.flow_runs.metaflow_env import FLOWS, FlowRun, Workspace
from harness.s3.gated_s3 import GatedS3


@pytest.fixture
def run(local: Workspace) -> FlowRun:
    return local.run_flow("retention_flow", env={"SAVES": "4", "ANNOTATE": "1"})


def test_lists_by_metadata_shows_compares_verifies_annotates_and_says_what_it_found(
    local: Workspace, run: FlowRun
) -> None:
    def ask(*arguments: str) -> str:
        return local.run_command(["async-ckpt", *arguments]).stdout

    lines = ask("list", "--flow", "RetentionFlow", "--where", "loss<=1", "--sort=-loss", "--columns", "loss,number")
    rows = [line.split() for line in lines.splitlines()]
    assert rows[0] == ["STATE", "ATTEMPT", "VERSION", "NAME", "SIZE", "CREATED", "LOSS", "NUMBER", "KEY"]
    assert [(row[2], row[-3], row[-2]) for row in rows[1:]] == [("2", "1", "2"), ("3", "0", "3")]
    keys = [row[-1] for row in rows[1:]]
    assert len(ask("list", "--flow", "RetentionFlow", "--limit", "3").splitlines()) == 4
    number = run.pathspec.split("/")[1]
    by_run = ["list", "--flow", "RetentionFlow", "--run", number, "--step", "start", "--json"]
    assert [one["version_id"] for one in json.loads(ask(*by_run))] == [3, 2, 1, 0]

    assert ask("list", "--flow", "RetentionFlow", "--where", "size>0").splitlines()[0].split()[6:] == [
        "NUMBER", "LOSS", "KEY",
    ]  # fmt: skip

    shown = ask("show", keys[0])
    assert "RetentionFlow" in shown
    assert shown.splitlines()[-1].split() == ["3", "B", "state"]

    (row,) = json.loads(ask("diff", *keys, "--json"))
    assert row == {"path": "state", "how": "changed", "bytes": 3}
    assert ask("diff", keys[0], keys[0]) == "the same\n"

    assert ask("verify", *keys).count("whole: ") == 2
    (file,) = [path for path in local.root.rglob("state") if keys[0] in str(path)]
    os.chmod(file, 0o600)
    file.write_bytes(b"abc")
    damaged = local.run_command(["async-ckpt", "verify", *keys], check=False)
    assert damaged.returncode == 1
    assert "1 of 2 checkpoints are damaged" in damaged.stderr

    ask("annotate", keys[1], '{"accuracy": 0.9}')
    (one,) = json.loads(ask("list", "--flow", "RetentionFlow", "--where", "accuracy > 0.5", "--json"))
    assert one["metadata"] == {"number": 3, "loss": 0, "accuracy": 0.9}

    refused = local.run_command(["async-ckpt", "list", "--flow", "RetentionFlow", "--where", "loss"], check=False)
    assert refused.returncode == 2
    assert "'loss' is no condition" in refused.stderr


def test_the_flow_has_the_same_commands(local: Workspace, run: FlowRun) -> None:
    flow = str(FLOWS / "retention_flow.py")

    def ask(*arguments: str) -> str:
        return local.run_command([sys.executable, flow, "--quiet", "checkpoint", *arguments]).stdout

    found = json.loads(ask("list", "--json"))
    assert [one["version_id"] for one in found] == [3, 2, 1, 0]
    assert "RetentionFlow checkpoint" in ask("--help")
    assert "loss" in ask("show", found[0]["key"])
    assert ask("retain", "--keep-last", "9") == "the rules keep everything\n"


def test_doctor_finds_nothing_in_the_way_and_leaves_nothing_behind(local: Workspace) -> None:
    findings = json.loads(local.run_command(["async-ckpt", "doctor", "--json"]).stdout)
    assert [one for one in findings if one["state"] == "bad"] == []
    assert {
        "python",
        "open files",
        "spool",
        "leases",
        "save()",
        "store",
        "write",
        "conditional writes",
        "copies",
        "clock",
    } <= {one["what"] for one in findings}
    assert local.spooled() == []
    assert not [path for path in local.root.rglob("*doctor*") if any(path.iterdir())]
    missing = json.loads(local.run_command(["async-ckpt", "doctor", "/does/not/exist", "--json"]).stdout)
    assert [one["what"] for one in missing if one["state"] == "bad"] == ["directory"]


@pytest.mark.long
def test_doctor_and_gc_on_s3(s3: Workspace, gate: GatedS3) -> None:
    findings = {one["what"]: one for one in json.loads(s3.run_command(["async-ckpt", "doctor", "--json"]).stdout)}
    assert [one for one in findings.values() if one["state"] == "bad"] == []
    assert {"conditional writes", "copies", "clock", "remove"} <= findings.keys()
    assert findings["clock"]["text"].startswith("within ")
    gate.close_gate("PUT:refuse")
    refused = json.loads(s3.run_command(["async-ckpt", "doctor", "--json"]).stdout)
    assert [one["what"] for one in refused if one["state"] == "bad"] == ["write"]
    gate.open_gate()
    assert "nothing that is older" in s3.run_command(["async-ckpt", "gc", "--store", "--yes"]).stdout


def test_gc_shows_what_a_killed_run_left_and_removes_it_when_told(local: Workspace, run: FlowRun) -> None:
    listed = json.loads(local.run_command(["async-ckpt", "list", "--flow", "RetentionFlow", "--json"]).stdout)
    (key,) = [one["key"] for one in listed if one["version_id"] == 1]
    for path in [path for path in local.root.rglob("*.mfchckpt.1.metadata")]:
        path.unlink()
    assert "nothing that is older than 7 days" in local.run_command(["async-ckpt", "gc"]).stdout
    refused = local.run_command(["async-ckpt", "gc", "--older-than", "1 s", "--yes"], check=False)
    assert refused.returncode == 2
    assert "is too short" in refused.stderr
    for path in local.root.rglob("*"):
        if key.rpartition("/")[2] in str(path):
            os.utime(path, (1, 1), follow_symlinks=False)
    gc = ["async-ckpt", "gc", "--store", "--flow", "RetentionFlow", "--json"]
    (found,) = json.loads(local.run_command(gc).stdout)
    assert (found["kind"], found["done"]) == ("upload", "found")
    (found,) = json.loads(local.run_command([*gc, "--yes"]).stdout)
    assert found["done"] == "removed"
    assert json.loads(local.run_command(gc).stdout) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_get_a_script_that_completes(local: Workspace, shell: str) -> None:
    script = local.run_command(["async-ckpt", "completion", shell]).stdout
    assert "retain" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)

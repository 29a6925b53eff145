"""Metadata that is not plain JSON costs no checkpoint, wherever it comes from; what is not kept of it is said once."""

from __future__ import annotations

import json
import math

import pytest

from harness.flow_runs.metaflow_env import Workspace


def test_a_training_loop_saves_whatever_it_has_at_hand(local: Workspace) -> None:
    run = local.run_flow("metadata_flow")
    (task,) = run.tasks()["start"]
    found = task.artifacts

    expected = {
        "loss": 0.5, "epoch": 1, "best": True, "rates": [0.5, 0.25], "when": "2026-11-28T00:00:00", "path": "/data",
        "labels": ["a", "b"], "3": "three", "model": "<object object>", "blob": "<not kept: larger than 1 MiB>",
        "loop": {"itself": "<not kept: part of itself>"},
    }  # fmt: skip
    for kept in (found["in_python"]["mfchckpt"], found["saved"]["metadata"]):
        assert math.isnan(kept.pop("nan"))
        assert kept == expected

    # In the task's log, and on the stderr of what it started; once a key, however many are saved.
    for key in ("model", "blob", "loop.itself"):
        assert run.output.count(f"[@checkpoint] The metadata '{key}' is ") == 1
    assert run.output.count("Save it as a file of the checkpoint") == 2
    assert found["stderr"]["subprocess"].count("[@checkpoint] The metadata 'model' is kept as text") == 1
    assert found["in_python"]["subprocess"] == {"rank": [1], "model": "<object object>"}

    # A shell: what is no JSON is kept as text, and what others cannot read is printed as they can.
    assert "[@checkpoint] --metadata is not JSON, and is kept as text" in found["stderr"]["text"]
    assert (found["stderr"]["nan"], found["stderr"]["list"]) == ("", "")
    listed = json.loads(found["listed"], parse_constant=pytest.fail)
    printed = {item["name"]: item["metadata"] for item in listed[::-1]}
    assert printed["mfchckpt"] == {**expected, "nan": "NaN"}
    assert (printed["nan"], printed["text"], printed["list"]) == ({"loss": "NaN", "half": "\\ud800"}, "loss=nan", [1])
    assert len(listed) == 7
    local.assert_clean()

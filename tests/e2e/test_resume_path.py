"""``resume_path()``: one answer for all processes of an attempt."""

from __future__ import annotations

from harness.flow_runs.metaflow_env import Workspace


def test_all_processes_of_an_attempt_get_the_path_of_what_it_begins_with(local: Workspace) -> None:
    run = local.run_flow("resume_flow")
    (task,), (end,) = run.tasks()["start"], run.tasks()["end"]
    seen = task.artifacts["seen"]
    assert task.attempt == 2
    # Nothing in a first attempt, unless ranks are started again in it: then what was saved until that start.
    started_again = ["model.ckpt", "model.ckpt", "model.ckpt", "later.ckpt"]
    assert seen["first"] == [[None], None, None, [None], started_again]
    # A single file.
    assert seen["second"] == [["later.ckpt"] * 4, "single"]
    # More than that.
    assert seen["directory"] == [True, True]
    patterns = seen["patterns"]
    assert [patterns[each] for each in ("a.pt", "deep", "**/*.ckpt")] == ["a.pt", "deep", "deep/last.ckpt"]
    assert "2 files or folders of the loaded checkpoint fit '*.pt': a.pt, b.pt" in patterns["*.pt"]
    assert "No file or folder of the loaded checkpoint fits 'none*': it has a.pt, b.pt, deep" in patterns["none*"]
    for bad in ("/etc/*", "../*", ""):
        assert patterns[bad].startswith(f"UsageError: pattern={bad!r} is no pattern of paths in a checkpoint")
    assert seen["info"] == ["mfchckpt", True, True]
    # What the step loads by itself counts from then on.
    assert seen["loaded"] == ["later.ckpt", ["later.ckpt"]]
    assert seen["fresh"] == [None, [None]]
    assert seen["cleaned"].startswith("UsageError: What was loaded to resume from is not there any more")
    assert end.artifacts["outside"].startswith("UsageError: This process does not belong to a step with @checkpoint")
    local.assert_clean()

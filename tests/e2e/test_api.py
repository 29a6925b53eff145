"""``current.checkpoint`` in a step: what it promises while the store is behind and after; how it answers mistakes."""

from __future__ import annotations

from harness.flow_runs.metaflow_env import Workspace


def test_the_whole_interface_in_a_step_while_the_store_is_closed_and_after_it_opened(s3: Workspace) -> None:
    run = s3.run_flow("api_flow", env={"METAFLOW_ASYNC_CKPT_SPOOL_DIR": ""})
    (task,) = run.tasks()["start"]
    seen = task.artifacts["seen"]

    assert seen["directory"].startswith("roots/temporary/")
    assert seen["is dict"] == [True, "dict"]
    assert seen["json"] is True
    # Nothing waits for the store ...
    assert seen["pending"] == [False, None, True]
    assert seen["wait"].startswith("WaitTimeout: Checkpoint 0.file.0 is not in the store after 0.2 s")
    assert seen["flush"].startswith(
        "FlushError: 3 checkpoints are not in the store: 0.file.0; 0.mfchckpt.1; 0.second.2"
    )
    assert seen["status"]["pending"] == 3
    assert seen["status"]["committed"] == 0
    assert seen["status"]["last_committed"] is None
    assert [name for name, _ in seen["list while closed"]] == ["second", "mfchckpt", "file"]
    assert {state for _, state in seen["list while closed"]} <= {"ADMITTED", "UPLOADING"}
    assert seen["loaded while closed"] == ["empty", "link", "state"]
    # ... and later it is all there.
    assert seen["states"] == ["COMMITTED"] * 3
    assert seen["done"] == [True, True]
    assert seen["list"] == [["second", "COMMITTED"], ["mfchckpt", "COMMITTED"], ["file", "COMMITTED"]]
    assert seen["by name"] == [True]
    assert seen["by attempt"] == 0
    assert seen["namespace"] == [True] * 3
    assert "contradict" in seen["contradiction"]
    assert seen["status after"]["pending"] == seen["status after"]["pending_bytes"] == 0
    assert seen["status after"]["committed"] == 3
    assert seen["status after"]["last_committed"] == "0.second.2"
    assert seen["loaded"] == {"names": ["empty", "link", "state"], "link": "state", "state": "one"}

    mistakes = seen["mistakes"]
    assert "no-such-path" in mistakes["missing"]
    assert "fifo" in mistakes["fifo"].lower()
    assert "with-fifo/pipe" in mistakes["fifo inside"]
    assert "'a/b'" in mistakes["slash"]
    assert "breaks its key" in mistakes["newline"]
    assert "files, tar" in mistakes["format"]
    assert "auto, hardlink, reflink, copy" in mistakes["snapshot"]
    assert mistakes["reference"].startswith("NotFound: ")
    assert "is not the key of a checkpoint" in mistakes["dots"]
    assert "'a/b' cannot be the name" in mistakes["key's name"]
    assert "version_id=-1 is not the number of a version" in mistakes["key's version"]

    # A checkpoint saved with latest=False is recorded, and not the latest.
    assert [c["name"] for c in task.artifacts["_task_checkpoints"]] == ["second", "mfchckpt", "file"]
    assert task.artifacts["_task_latest_checkpoint"]["name"] == "mfchckpt"
    s3.assert_clean()
    left = [path for path in (s3.cwd / "roots").rglob("*") if not path.is_dir()]
    assert left == [], "The spool below temp_dir_root is not empty"

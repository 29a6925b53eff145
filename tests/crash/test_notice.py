"""What a user should know of how the store works here is said once in the task's log, whoever dies meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from async_ckpt.stores.base import StoreSpec
from harness.s3.servers import BUCKET, S3Server, moto_server
from harness.tasks.repeated_saves import save
from harness.tasks.task import Task, agent_pid, kill, uploader_pid, wait_until

__all__ = ["moto_server"]

REASON = "there is no S3RegionRedirector"


@pytest.fixture
def _aiobotocore_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import fails in the processes that are started from now on."""
    (tmp_path / "shadow" / "aiobotocore").mkdir(parents=True)
    (tmp_path / "shadow" / "aiobotocore" / "__init__.py").write_text(f"raise AttributeError({REASON!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path / "shadow"))


@pytest.mark.usefixtures("_aiobotocore_does_not_fit")
def test_a_task_hears_once_that_uploads_go_another_way(task: Task, moto_server: S3Server) -> None:
    task.store = StoreSpec(
        "metaflow-s3", f"s3://{BUCKET}/notice-{os.getpid()}", {"client_params": dict(moto_server.client_params)}
    )
    lines: list[str] = []
    checkpointer = task.start(report=lines.append)
    save(checkpointer, task, 0)
    checkpointer.flush(60)
    (line,) = [line for line in lines if "boto3 in threads" in line]
    assert REASON in line
    assert "@pypi(packages=" in line
    assert checkpointer.status()["warnings"] == [line]
    assert Path(checkpointer.spool.path("agent.log")).read_text().count(REASON) == 1

    for victim in (uploader_pid(checkpointer), agent_pid(checkpointer)):
        kill(victim)
    save(checkpointer, task, 1)
    checkpointer.flush(60)
    assert line in wait_until(lambda: checkpointer.status()["warnings"], "the new agent knows it as well")
    assert lines.count(line) == 1

    # Another attempt has a log of its own.
    checkpointer.close(clean=False)
    again: list[str] = []
    checkpointer = task.start(attempt=1, report=again.append)
    save(checkpointer, task, 2)
    checkpointer.flush(60)
    assert [found for found in again if "boto3 in threads" in found] == [line]

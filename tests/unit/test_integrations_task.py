"""What integrations ask: who saves, which rank, which version."""

from __future__ import annotations

from types import SimpleNamespace

import metaflow
import pytest

from async_ckpt.config import ENV_SPOOL
from async_ckpt.errors import UsageError
from async_ckpt.integrations import _task


def test_a_step_saves_itself_a_subprocess_by_its_environment_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_SPOOL, raising=False)
    with pytest.raises(UsageError, match="belongs to no step with @checkpoint"):
        _task.checkpoints()
    monkeypatch.setenv(ENV_SPOOL, "/somewhere")
    assert isinstance(_task.checkpoints(), metaflow.Checkpoint)
    of_step = SimpleNamespace(name="the step's")
    monkeypatch.setattr(metaflow, "current", SimpleNamespace(checkpoint=of_step))
    assert _task.checkpoints() is of_step


def test_the_rank_is_the_launchers_or_the_gangs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "MF_PARALLEL_NODE_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert _task.rank() == 0
    monkeypatch.setenv("MF_PARALLEL_NODE_INDEX", "1")
    assert _task.rank() == 1
    monkeypatch.setenv("RANK", "5")
    assert _task.rank() == 5
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="RANK='first' is not the number of a rank"):
        _task.rank()


@pytest.mark.parametrize(
    ("version", "was_tried"),
    [
        ("4.46", True), ("4.46.0", True), ("5.24.9", True), ("5.3.1+cpu", True), ("5.0rc1", True), ("4.9", False),
        ("4.45.9", False), ("5.25.0", False), ("6", False), ("10.1", False), ("dev", False), ("5", True),
    ],
)  # fmt: skip
def test_a_version_that_was_not_tried_is_said_once(
    version: str, was_tried: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _task.check_version.cache_clear()
    for _ in range(2):
        _task.check_version("transformers", version, "4.46", "5.24")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if was_tried else 1)
    assert all(
        line.startswith(f"transformers {version} was not tried with this package (4.46 to 5.24") for line in said
    )

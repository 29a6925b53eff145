"""What is moved into the spool is its only copy, and whoever has a file of it open can still write to it."""

from __future__ import annotations

import pytest

from async_ckpt.errors import FlushError

from ..support.agents import Task, content
from ..support.scenes import BIG


def test_what_is_written_to_after_it_was_moved_is_reported_and_never_stored(task: Task) -> None:
    gate = task.gate()
    gate.hold("weights")
    checkpointer = task.start()
    folder = task.work / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_bytes(content(0, BIG))
    with open(folder / "weights", "r+b") as file:
        checkpointer.save(folder, snapshot="move")
        file.write(b"torn")
    gate.open("weights")
    with pytest.raises(FlushError, match="weights was written to"):
        checkpointer.flush(60)
    assert task.committed() == []
    assert (folder / "weights").read_bytes()[:4] == b"torn", "it is put back"

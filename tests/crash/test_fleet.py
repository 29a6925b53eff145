"""A fleet of subprocesses saves through the one socket of their task."""

from __future__ import annotations

import pytest

from harness.tasks import fleet
from harness.tasks.task import Task
from tests.spread import first_of


@pytest.mark.parametrize("uploader", first_of(["process", "thread"]))
def test_eight_subprocesses_save_five_times_each_at_once_and_each_save_has_its_own_content(
    task: Task, uploader: str
) -> None:
    outcome = fleet.run(task, writers=8, saves=40, uploader=uploader)
    assert (outcome.missing, outcome.wrong, outcome.same_version) == (0, 0, 0)
    assert len(outcome.blocked) == 40
    assert task.committed_versions() == list(range(40))


def test_a_missing_save_and_one_with_anothers_content_are_counted(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool can fail."""
    monkeypatch.setattr(fleet, "as_stored", lambda store, reference: reference["version_id"] != 1)
    monkeypatch.setattr(Task, "committed_versions", lambda self: [1, 2, 3])
    outcome = fleet.run(task, writers=2, saves=4)
    assert (outcome.missing, outcome.wrong, outcome.bad) == (1, 1, 2)

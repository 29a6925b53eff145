"""Random lives of a task with agents that die, hang, cannot be started, or are slow; ``stress/`` has a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kills.agent_states import run


@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(100, 120))])
def test_every_save_is_stored_or_named_and_every_flush_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    outcome = run(seed, tmp_path, monkeypatch)
    assert outcome.saves
    assert outcome.happened
    assert not outcome.problems

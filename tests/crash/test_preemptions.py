"""A few machines that are taken away, as ``python -m stress.preemptions`` has them by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kills.preemption import (
    COMMIT_HANGS,
    FAILS,
    GONE,
    HANGS,
    NO_COMMIT,
    REFUSED,
    SLOW,
    TORN,
    Preemption,
    run,
)

#: Bytes, seconds, and bytes a second: there is far more time than it takes.
_SIZE, _SECONDS, _RATE = 300_000, 12.0, 4e6


@pytest.mark.parametrize(
    ("store", "faults"),
    [
        ("local", [REFUSED, HANGS, TORN]),
        ("local", [NO_COMMIT, FAILS, GONE]),
        ("s3", [COMMIT_HANGS, SLOW]),
    ],
    ids=str,
)
def test_what_cannot_be_stored_gives_way_to_the_next_newest(
    store: str, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest ones cannot be stored, each for another reason; two older ones can."""
    newest = 2 + len(faults)
    case = Preemption(
        store, "SIGTERM", _SECONDS, _RATE, dict.fromkeys(range(1, newest + 1), _SIZE),
        {newest - place: fault for place, fault in enumerate(faults)},
    )  # fmt: skip
    assert case.must() == [2, 1], "there is time for them"
    outcome = run(case, tmp_path, monkeypatch, to_the_end=False)
    assert {1, 2} <= outcome.durable.keys(), outcome
    assert not [problem for problem in outcome.problems if "though it is" in problem], outcome

"""A few of ``python -m stress.signals``: whatever a signal's handler does, and whatever it interrupts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness.kills.interruptions import run


def test_a_task_that_is_interrupted_all_the_time_hangs_nowhere_and_has_nothing_wrong(tmp_path: Path) -> None:
    figures: Counter[str] = Counter()
    assert run(tmp_path, 2, 40, 1, figures) == []
    assert figures["handlers that interrupted this package"] > 0
    assert figures["checkpoints compared"] > 0

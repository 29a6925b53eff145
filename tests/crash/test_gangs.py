"""A gang of which a rank is killed while it saves: a round of ``stress.gangs``, in which a hundred are played."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.kills.gang_kills import play


#: Of these, one kills rank 0 a tenth of a second after it began, the other one rank 1.
@pytest.mark.long
@pytest.mark.parametrize(("seed", "rank"), [("control3", 0), ("worker6", 1)])
def test_a_retry_begins_with_one_checkpoint_on_all_ranks_and_nothing_partial_is_visible(
    tmp_path: Path, seed: str, rank: int
) -> None:
    figures: Counter[str] = Counter()
    assert play(tmp_path, seed, 3, 40, figures, longest_s=0.3) == []
    assert figures["ranks killed"] == figures["retries"] == 1
    assert figures["of them control tasks"] == (rank == 0)
    assert figures["checkpoints committed"] >= 40

"""The comparison of loss curves sees what differs."""

from __future__ import annotations

import pytest

from harness.flow_runs.metaflow_env import FlowRun
from harness.integrations.curves import Life, Training, resumed_from

WHOLE = [f"0x{n}" for n in range(6)]


def training(*lives: dict[int, list[str]]) -> Training:
    run = FlowRun(0, "what the flow said", "Flow/1", None)  # type: ignore[arg-type]
    return Training(run, [Life(f"{number}.0", losses) for number, losses in enumerate(lives)])


def test_lives_that_follow_each_other_are_the_uninterrupted_run() -> None:
    whole = training({0: WHOLE})
    assert resumed_from(whole, whole) == []
    assert resumed_from(training({0: WHOLE[:4]}, {0: WHOLE[2:]}), whole) == [2]
    assert resumed_from(training({0: WHOLE[:4]}, {0: WHOLE[4:5]}, {0: WHOLE[4:]}), whole) == [4, 4]
    two = training({0: WHOLE, 1: ["0xa", "0xb", "0xc", "0xd", "0xe", "0xf"]})
    assert resumed_from(
        training({0: WHOLE[:3], 1: ["0xa", "0xb"]}, {0: WHOLE[2:], 1: two.lives[0].losses[1][2:]}), two
    ) == [2]


@pytest.mark.parametrize(
    ("lives", "why"),
    [
        ([{0: WHOLE[:4]}, {0: ["0x4", "0x5.1"]}], "differing"),
        ([{0: WHOLE[:4]}, {0: ["0x9"]}], "no step of the uninterrupted run"),
        ([{0: WHOLE[:3]}, {0: WHOLE[4:]}], "begins with 4"),
        ([{0: WHOLE[:4]}, {0: WHOLE[2:5]}], "what the flow said"),
        ([{0: WHOLE[:4]}, {0: [*WHOLE[2:], "0x6"]}], "more steps than there are"),
        ([{0: WHOLE[:4]}], "what the flow said"),
    ],
)
def test_what_differs_is_seen(lives: list[dict[int, list[str]]], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        resumed_from(training(*lives), training({0: WHOLE}))


def test_ranks_that_do_not_go_on_together_are_seen() -> None:
    whole = training({0: WHOLE, 1: ["0xa", "0xb", "0xc", "0xd", "0xe", "0xf"]})
    killed = training({0: WHOLE[:3], 1: ["0xa", "0xb"]}, {0: WHOLE[2:], 1: ["0xd", "0xe", "0xf"]})
    with pytest.raises(AssertionError, match="ranks begin with different steps"):
        resumed_from(killed, whole)

"""How long steps take, as the agent is told."""

from __future__ import annotations

from typing import Any

import pytest

from async_ckpt.config import MAX_STEPS, STEPS_SHORT_S, STEPS_TELL_S
from async_ckpt.task.steps import StepTimer


class Trainer:
    def __init__(self) -> None:
        self.now, self.told = 50.0, list[list[float]]()
        self.timer = StepTimer(self.tell, lambda: self.now)

    def tell(self, op: str, **fields: Any) -> None:
        assert op == "steps"
        self.told.append(fields["times"])

    def train(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.now += seconds
            self.timer.step()


def test_the_agent_is_told_about_once_a_second() -> None:
    trainer = Trainer()
    trainer.train(101, 0.1)
    assert 9 <= len(trainer.told) <= 10
    assert sum(map(len, trainer.told)) >= 90
    assert all(time == pytest.approx(0.1) for times in trainer.told for time in times)


def test_what_was_before_the_first_step_is_none() -> None:
    trainer = Trainer()
    trainer.train(1, 3600)
    trainer.train(1, 2)
    assert trainer.told == [[pytest.approx(2)]]


def test_of_short_steps_the_mean_is_told() -> None:
    trainer = Trainer()
    trainer.train(25_000, 1e-4)
    assert len(trainer.told) == 2
    for times in trainer.told:
        assert len(times) <= STEPS_TELL_S / STEPS_SHORT_S + 1 <= MAX_STEPS
        assert all(time == pytest.approx(1e-4) for time in times)


def test_long_steps_are_told_each_by_itself() -> None:
    trainer = Trainer()
    trainer.train(3, 60)
    assert trainer.told == [[pytest.approx(60)], [pytest.approx(60)]]

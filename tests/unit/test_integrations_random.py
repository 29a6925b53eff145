"""Random states come back through JSON as they were."""

from __future__ import annotations

import json
import random

import numpy as np

from async_ckpt.integrations import _random


def draw() -> list[float]:
    """One normal number of each is drawn alone: the generators keep the other one of its pair."""
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]


def test_what_is_drawn_after_a_state_is_restored_is_what_was_drawn_before() -> None:
    before = random.getstate(), np.random.get_state()
    try:
        random.seed(1)
        np.random.seed(2)
        draw()
        saved = json.loads(json.dumps(_random.states()))
        first, second = draw(), draw()
        assert first != second
        _random.restore(saved)
        assert [draw(), draw()] == [first, second]
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])

"""Which cells of a matrix are always tried, and which are long."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def spread(*axes: Sequence[Any]) -> list[Any]:
    """All cells, as parameters. Those along the diagonal, which have each value of each axis, are always tried."""
    diagonal = {tuple(number % len(axis) for axis in axes) for number in range(max(map(len, axes)))}
    return [
        pytest.param(
            *(axis[number] for axis, number in zip(axes, cell, strict=True)),
            marks=[] if cell in diagonal else pytest.mark.long,
        )
        for cell in itertools.product(*(range(len(axis)) for axis in axes))
    ]


def first_of(values: Sequence[Any]) -> list[Any]:
    """All values, as parameters. The first is always tried."""
    return [pytest.param(value, marks=pytest.mark.long if number else []) for number, value in enumerate(values)]

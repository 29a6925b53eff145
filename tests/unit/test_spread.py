"""What is always tried of a matrix has each value of each axis, and nothing is left out when all is tried."""

from __future__ import annotations

import itertools

import pytest

from tests.spread import first_of, spread


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (7, 2, 4), (4, 2, 1, 3)])
def test_each_value_of_each_axis_is_always_tried_and_each_cell_is_there_once(sizes: tuple[int, ...]) -> None:
    axes = [[f"{letter}{number}" for number in range(size)] for letter, size in zip("abcd", sizes, strict=False)]
    cells = spread(*axes)
    assert [cell.values for cell in cells] == list(itertools.product(*axes))
    always = [cell.values for cell in cells if not cell.marks]
    assert len(always) == max(sizes)
    for number, axis in enumerate(axes):
        assert {values[number] for values in always} == set(axis)


def test_of_a_list_the_first_is_always_tried() -> None:
    assert [(param.values, bool(param.marks)) for param in first_of("abc")] == [
        (("a",), False), (("b",), True), (("c",), True),
    ]  # fmt: skip

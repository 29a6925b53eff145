"""Choosing checkpoints by their metadata."""

from __future__ import annotations

import math
from typing import Any

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.task.listing import parts_of
from async_ckpt.task.query import Condition, chosen, conditions, names_of


def found(number: int, **metadata: Any) -> dict[str, Any]:
    return {"name": f"c{number}", "size": 10 * number, "metadata": metadata}


ALL = [found(1, loss=0.5), found(2, loss=0.25, tag="best"), found(3, loss="0.1"), found(4, loss=math.nan), found(5)]


def names(ones: list[dict[str, Any]]) -> list[str]:
    return [one["name"] for one in ones]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss<0.3", ["c2"]),
        ("loss <= 0.5", ["c1", "c2"]),
        ("loss>0", ["c1", "c2"]),
        ("loss==0.25", ["c2"]),
        ("loss = 0.25", ["c2"]),
        ("loss!=0.25", ["c1"]),
        ("loss=='0.1'", ["c3"]),
        ("tag==best", ["c2"]),
        ("tag == 'best'", ["c2"]),
        ("size>=40", ["c4", "c5"]),
        ("name==c5", ["c5"]),
        ("nothing==1", []),
        ("loss==true", []),
    ],
)
def test_conditions_as_text(text: str, expected: list[str]) -> None:
    assert names(chosen(ALL, conditions(None, [text]))) == expected


def test_conditions_as_a_dict() -> None:
    assert names(chosen(ALL, conditions({"loss": ("<", 0.3)}))) == ["c2"]
    assert names(chosen(ALL, conditions({"tag": "best", "loss": ("<", 1)}))) == ["c2"]
    assert names(chosen(ALL, conditions({}))) == names(ALL)


def test_names_within_dicts() -> None:
    ones = [found(1, val={"loss": 1, "by": {"class": 2}}), found(2, **{"val.loss": 3}), found(3, val=5)]
    assert names(chosen(ones, conditions(None, ["val.loss>=1"]))) == ["c1", "c2"]
    assert names(chosen(ones, conditions(None, ["val.by.class==2"]))) == ["c1"]


@pytest.mark.parametrize("text", ["", "loss", "<3", "loss<", "loss ~ 3", "=", "=="])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no condition"):
        conditions(None, [text])


@pytest.mark.parametrize(
    "given", [{"loss": ("~", 1)}, {"loss": [1, 2, 3]}, {1: 2}, {"loss": ("<", math.nan)}, {"a": {}}]
)
def test_what_is_no_condition_of_a_dict_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="is no condition"):
        conditions(given)


def test_what_is_sorted_by_a_name() -> None:
    assert names(chosen(ALL, [], "loss")) == ["c2", "c1", "c3", "c4", "c5"]
    assert names(chosen(ALL, [], "-loss")) == ["c1", "c2", "c3", "c4", "c5"]
    assert names(chosen(ALL, [], "-size")) == ["c5", "c4", "c3", "c2", "c1"]
    assert names(chosen(ALL, [], "")) == names(ALL)


def test_a_condition_compares_what_is_of_one_kind() -> None:
    assert not Condition("x", "<", 3).holds(found(1, x="2"))
    assert not Condition("x", "!=", 3).holds(found(1, x=None))
    assert not Condition("x", "==", 1).holds(found(1, x=True))
    assert Condition("x", "==", True).holds(found(1, x=True))


def test_names_by_which_is_chosen() -> None:
    assert names_of(conditions({"a": 1}, ["b.c<2", "a>0"]), "-d") == ["a", "b.c", "d"]
    assert names_of([], "") == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("F", None, None), ("F", None, None)),
        (("F", "1", "s"), ("F", "1", "s")),
        ((None, "F/1", None), ("F", "1", None)),
        ((None, "F/1", "s"), ("F", "1", "s")),
        ((None, None, "F/1/s"), ("F", "1", "s")),
        (("F", "1", "F/1/s"), ("F", "1", "s")),
        ((None, "F/1", "F/1/s"), ("F", "1", "s")),
    ],
)
def test_a_flow_a_run_and_a_step_are_given_by_their_names_or_pathspecs(
    given: tuple[str | None, ...], expected: tuple[str | None, ...]
) -> None:
    assert parts_of(*given) == expected


@pytest.mark.parametrize(
    "given", [(None, "1", None), (None, None, "s"), ("G", "F/1", None), ("F", "2", "F/1/s"), (None, "F/2", "F/1/s")]
)
def test_what_contradicts_itself_or_names_no_flow_is_refused(given: tuple[str | None, ...]) -> None:
    with pytest.raises(UsageError, match=r"contradicts|Whose run"):
        parts_of(*given)

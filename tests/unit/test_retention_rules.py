"""Which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_ckpt import layout
from async_ckpt.errors import UsageError
from async_ckpt.retention.rules import Best, Rules, best_of


def found(version: int, name: str = "model", attempt: int = 0, **metadata: Any) -> dict[str, Any]:
    key = f"{attempt}.{name}.{version}"
    return {"key": key, "name": name, "attempt": attempt, "version_id": version, "metadata": metadata}


def kept(rules: Rules, ones: Sequence[dict[str, Any]]) -> list[int]:
    by_key = {one["key"]: one for one in ones}
    return sorted(by_key[key]["version_id"] for key in rules.kept(ones))


TEN = [found(number, loss=abs(number - 6) + 0.5) for number in range(10)]


@pytest.mark.parametrize(
    ("rules", "versions"),
    [
        (Rules(), list(range(10))),
        (Rules(last=3), [7, 8, 9]),
        (Rules(last=20), list(range(10))),
        (Rules(every=4), [0, 4, 8]),
        (Rules(best=Best("loss", "min", 1)), [6]),
        (Rules(best=Best("loss", "max", 2)), [0, 1]),
        (Rules(best=Best("loss", "min", 2)), [6, 7]),
        (Rules(last=1, best=Best("loss", "min", 1), every=5), [0, 5, 6, 9]),
        (Rules(best=Best("acc", "max", 1)), list(range(10))),
        (Rules(last=1, best=Best("acc", "max", 1)), list(range(10))),
    ],
)
def test_what_one_of_the_rules_keeps_is_kept(rules: Rules, versions: list[int]) -> None:
    assert kept(rules, TEN) == versions


def test_each_name_is_a_series_of_its_own_over_all_attempts() -> None:
    ones = [found(5), found(1, attempt=1), found(2, attempt=1), found(3, name="best")]
    assert set(Rules(last=1).kept(ones)) == {"1.model.2", "0.best.3"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None, [0.1], {"a": 0.1}, True, 10**400])
def test_what_is_no_number_is_not_among_the_best(value: Any) -> None:
    ones = [found(0, loss=value), found(1, loss=0.9), found(2, loss=0.8)]
    assert kept(Rules(best=Best("loss", "min", 1)), ones) == [2]


def test_what_has_no_number_yet_and_is_newer_waits_for_it() -> None:
    ones = [found(0), found(1, loss=0.5), found(2), found(3)]
    assert kept(Rules(best=Best("loss", "min", 1)), ones) == [1, 2, 3]


def test_numbers_within_dicts_are_found_by_their_path() -> None:
    ones = [found(0, val={"loss": 0.1}), found(1, val={"loss": 0.2}), found(2, **{"val.loss": 0.05})]
    assert kept(Rules(best=Best("val.loss", "min", 1)), ones) == [2]
    assert kept(Rules(best=Best("val.loss", "min", 2)), ones) == [0, 2]


def test_a_metric_that_nobody_has_is_said_and_one_that_is_a_text() -> None:
    rules = Rules(best=Best("loss", "min", 1))
    assert rules.unjudged([found(0, loss=1)]) == ""
    assert "no checkpoint has the number 'loss'" in rules.unjudged([found(0), found(1)])
    assert "is no number in the metadata of some checkpoints (one has '0.3')" in rules.unjudged(
        [found(0, loss="0.3"), found(1, loss=1)]
    )
    assert Rules(last=1).unjudged([found(0)]) == ""


@pytest.mark.parametrize(
    "given", [("loss", "min", 3), ["loss", "min", "3"], "loss min 3", "loss,min,3", " loss  min 3 "]
)
def test_the_best_are_given_as_a_tuple_or_a_text(given: Any) -> None:
    assert best_of(given) == Best("loss", "min", 3)


@pytest.mark.parametrize("name", ["val loss", "loss min 3", "a, b", "min", "3"])
def test_a_name_may_have_several_words(name: str) -> None:
    assert best_of(f"{name} max 2") == best_of((name, "max", 2)) == Best(name, "max", 2)
    assert best_of(f"{name} max") == Best(name, "max", 1)


@pytest.mark.parametrize(
    "given",
    ["loss", "loss least 3", "loss min 0", "loss min -1", "loss min x", "", None, 3, ("", "min", 1), (1, "min", 1)],
)
def test_what_names_no_best_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="keep_best"):
        best_of(given)


_ones = st.lists(
    st.builds(
        found, st.integers(0, 30), st.sampled_from(["a", "b"]), st.integers(0, 2),
        loss=st.none() | st.floats(-5, 5) | st.just("x"),
    ),
    unique_by=lambda one: one["key"],
)  # fmt: skip
_rules = st.builds(
    Rules, st.integers(0, 5),
    st.none() | st.builds(Best, st.just("loss"), st.sampled_from(["min", "max"]), st.integers(1, 4)), st.integers(0, 5),
)  # fmt: skip


@given(_rules, _ones)
def test_whatever_the_rules_the_newest_of_each_name_stays_if_any_of_the_last_do(
    rules: Rules, ones: list[dict[str, Any]]
) -> None:
    left = rules.kept(ones)
    assert left.keys() <= {one["key"] for one in ones}
    for name in {one["name"] for one in ones}:
        newest = max((one for one in ones if one["name"] == name), key=layout.order)
        if rules.last or not rules:
            assert newest["key"] in left
    # What is kept once is kept again if nothing comes: rules that are applied twice remove nothing more.
    again = rules.kept([one for one in ones if one["key"] in left])
    if rules.best is None:
        assert again.keys() == left.keys()

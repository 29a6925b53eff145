"""Which checkpoint is the newest, whatever clocks and zones the machines have that saved them."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from async_ckpt import layout
from async_ckpt.layout import newest

NOON = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)


def saved(
    at: datetime | None = NOON, *, task: str = "1", attempt: int = 0, version: int = 0, **fields: Any
) -> dict[str, Any]:
    """A reference with what orders it; ``fields`` say more, or other."""
    data: dict[str, Any] = {"pathspec": f"Flow/1/start/{task}", "attempt": attempt, "version_id": version}
    if at is not None:
        data["created_at"] = at.isoformat()
    return {**data, **fields}


@pytest.fixture
def sydney(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Australia/Sydney")
    time.tzset()
    yield
    os.environ.pop("TZ")
    time.tzset()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"created_at": "2026-11-28T12:00:00.000001+00:00"}, NOON + timedelta(microseconds=1)),
        ({"created_at": "2026-11-28T23:00:00+11:00"}, NOON),
        ({"created_at": "2026-11-28T12:00:00Z"}, NOON),
        ({"created_at": "2026-11-28T12:00:00+00:00", "created_on": "2030-01-01T00:00:00"}, NOON),
        ({"created_on": "2026-11-28T23:00:00+11:00"}, NOON),
        ({"created_on": "2026-11-29T02:00:00"}, NOON),
        ({"created_at": "soon", "created_on": "2026-11-29T02:00:00"}, NOON),
    ],
)
def test_a_moment_is_in_utc_and_without_a_zone_the_earliest_that_it_can_have_been(
    fields: dict[str, Any], expected: datetime
) -> None:
    assert newest.moment(fields) == expected


@pytest.mark.parametrize(
    "value", ["", "yesterday", "0001-01-01T00:00:00", "0001-01-01T00:00:00+01:00", None, 7, [], {}]
)
def test_what_is_no_time_is_older_than_all(value: Any) -> None:
    data = {"created_at": value, "created_on": value}
    assert newest.moment(data) < NOON
    assert newest.newer(saved(), {**saved(None, task="2"), **data})
    assert newest.newest_first([data | saved(None, task="2"), saved()])[0] == saved()
    assert newest.shown(data)


def test_what_a_reference_says_of_its_moment_does_not_depend_on_the_zone_and_old_clients_can_compare_it(
    sydney: None,
) -> None:
    task = layout.TaskInfo("Flow", "1", "start", "1", 0, "scope", "identifier")
    made = layout.reference(
        task, name="a", version=0, url="/", size=0, metadata={}, storage_format="files", latest=True, now=NOON
    )
    assert made["created_at"] == "2026-11-28T12:00:00.000000+00:00"
    assert datetime.fromisoformat(made["created_on"]) == datetime(2026, 11, 28, 23)
    assert newest.shown(made) == "2026-11-28 23:00:00+11:00"
    assert newest.shown({"created_on": "2026-11-28T12:00:00.500000"}) == "2026-11-28 12:00:00"


def test_within_a_task_attempt_and_version_decide_and_between_tasks_the_moment() -> None:
    first, second = saved(NOON, version=9), saved(NOON - timedelta(hours=5), attempt=1)
    assert newest.newer(second, first)
    assert not newest.newer(first, second)
    other = saved(NOON - timedelta(hours=1), task="2", version=1)
    assert newest.newer(first, other)
    assert newest.newer(other, second)
    assert not newest.newer(first, first)


@pytest.mark.parametrize("seed", range(20))
def test_mixed_lists_have_one_order_in_which_no_task_is_against_its_versions_and_no_version_before_its_moment(
    seed: int,
) -> None:
    """Some clocks go backwards, some entries have no zone or no time at all."""
    rng = random.Random(seed)
    entries = []
    for task, version in itertools.product("123", range(6)):
        at = NOON + timedelta(hours=rng.randrange(-30, 30))
        kind = rng.randrange(4)
        if kind == 0:
            entries.append(saved(None, task=task, version=version, created_on=at.replace(tzinfo=None).isoformat()))
        elif kind == 1:
            entries.append(saved(None, task=task, version=str(version)))  # type: ignore[arg-type]
        else:
            entries.append(saved(at, task=task, attempt=version // 3, version=version % 3))
    expected = newest.newest_first(entries)
    for _ in range(5):
        rng.shuffle(entries)
        assert newest.newest_first(entries) == expected
    for task in "123":
        orders = [layout.order(data) for data in expected if data["pathspec"].endswith(f"/{task}")]
        assert orders == sorted(orders, reverse=True)
    for place, data in enumerate(expected):
        for later in expected[place + 1 :]:
            same_or_newer = newest.moment(later) <= newest.moment(data) or later["pathspec"] == data["pathspec"]
            earlier = [
                e for e in entries if e["pathspec"] == data["pathspec"] and layout.order(e) <= layout.order(data)
            ]
            assert same_or_newer or max(map(newest.moment, earlier)) >= newest.moment(later)


@pytest.mark.parametrize(
    ("ahead", "blocks"), [(timedelta(), True), (timedelta(seconds=30), True), (timedelta(hours=1), False)]
)
def test_a_latest_from_the_future_blocks_nothing_but_its_own_task(ahead: timedelta, blocks: bool) -> None:
    latest = saved(NOON + ahead, task="2", version=3)
    assert newest.blocks(latest, saved(NOON - timedelta(minutes=1)), NOON) is blocks
    assert newest.blocks(latest, saved(NOON, task="2", version=2), NOON)
    assert not newest.blocks(latest, saved(NOON, task="2", version=4), NOON)

"""Whether to save now: by time, on a notice, and as seldom or often as loses least."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.ranks import who
from async_ckpt.spool import recovery
from async_ckpt.spool.recovery import Recovery
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from async_ckpt.system.clock import moment
from async_ckpt.task.due import Due, best_interval_s
from harness.common.clock import StillClock
from harness.tasks.task import TASK


class Loop:
    """A process that trains, and an agent that writes down what it is told to."""

    def __init__(self, base: Path, **settings: Any) -> None:
        self.clock, self.config = StillClock(), Config(**settings)
        self.spool = Spool.create(str(base), TASK, StoreSpec("local", str(base / "store")))
        self.note = Recovery(attempt=0, began=moment(self.clock))
        self.due = Due(self.spool, self.config, self.clock, moment(self.clock))

    def ask(self, every: Any = 600, collective: bool | None = None) -> bool:
        return self.due.is_due(every, collective)

    def after(self, seconds: float) -> Loop:
        self.clock.sleep(seconds)
        return self

    def save(self, cost_s: float = 0.0, *, latest: bool = True) -> None:
        captured = moment(self.clock)
        self.after(cost_s).due.saved(captured, latest=latest)

    def write(self, **fields: Any) -> None:
        """The agent writes something down."""
        self.note = replace(self.note, **fields)
        recovery.write(self.spool.directory, self.note)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return Loop(tmp_path)


def test_the_first_save_is_due_when_the_attempt_is_so_old_and_each_next_one_when_the_last_is(loop: Loop) -> None:
    assert not loop.ask()
    assert not loop.after(599).ask()
    assert loop.after(1).ask()
    assert loop.ask(), "until it is done"
    loop.save()
    assert not loop.after(599).ask()
    assert loop.after(1).ask()


@pytest.mark.parametrize(
    "every", [600, 600.0, "600", "10 min", "10min", "600 s", timedelta(minutes=10), np.int32(600), np.float64(600)]
)
def test_every_may_be_given_in_many_ways(loop: Loop, every: Any) -> None:
    assert not loop.after(599).ask(every)
    assert loop.after(1).ask(every)


@pytest.mark.parametrize(
    "every",
    ["yesterday", "", "10 min ago", 0, -1, True, None, math.nan, math.inf, [600], {}, timedelta(0)],
    ids=str,
)
def test_what_is_no_duration_is_refused_and_says_what_is(loop: Loop, every: Any) -> None:
    loop.ask(1)  # True is not 1, though both are the same key.
    with pytest.raises(UsageError, match=r"every=.* is not valid. It is 'auto', or a number of seconds"):
        loop.ask(every)


def test_saves_of_other_processes_count_but_for_a_rank_that_saves_for_itself(loop: Loop) -> None:
    loop.write(saved=moment(loop.after(300).clock))
    assert not loop.after(599).ask()
    assert loop.ask(collective=False)
    assert loop.after(1).ask()


def test_another_attempts_note_and_one_that_is_gone_change_nothing(loop: Loop) -> None:
    loop.write(attempt=1, saved=moment(loop.after(300).clock), ends={"SIGTERM": moment(loop.clock)})
    assert not loop.ask()
    assert loop.after(300).ask()
    os.unlink(loop.spool.path(recovery.NAME))
    assert loop.ask()


def test_what_a_retry_does_not_load_counts_only_if_it_was_due(loop: Loop) -> None:
    loop.after(599).save(latest=False)
    assert loop.after(1).ask()
    loop.save(latest=False)
    assert not loop.after(599).ask()


def test_a_save_is_due_at_once_when_the_end_is_told_until_one_was_made(loop: Loop) -> None:
    loop.after(10).save()
    loop.after(1).write(ends={"the notice": moment(loop.clock)})
    assert loop.ask()
    assert loop.ask(collective=False)
    loop.after(1).save()
    assert not loop.ask()
    loop.after(1).write(ends={"the notice": loop.note.ends["the notice"], "SIGTERM": moment(loop.clock)})
    assert loop.ask()
    loop.write(ends={})
    assert not loop.ask()
    loop.after(1).due.end_is_told()
    assert loop.ask()
    loop.write(saved=moment(loop.after(1).clock))
    assert not loop.ask(), "another process has saved"


def test_a_process_that_comes_later_goes_by_the_beginning_of_the_attempt(loop: Loop) -> None:
    loop.due = Due(loop.spool, loop.config, loop.clock)
    loop.write()
    assert not loop.after(599).ask()
    assert loop.after(1).ask()
    loop.due = Due(loop.spool, loop.config, loop.clock)
    os.unlink(loop.spool.path(recovery.NAME))
    assert not loop.ask(), "it does not know better than that it begins now"


def test_a_clock_that_is_set_changes_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    for jump_s in (-86400, 86400):
        monkeypatch.setattr(loop.clock, "time_ns", lambda jump_s=jump_s: int((loop.clock.now + jump_s) * 1e9))
        loop.write(saved=moment(loop.clock))
        assert not loop.after(599).ask()
        assert loop.after(1).ask()


# -- auto --------------------------------------------------------------------------------------------------------------


def test_the_best_interval_is_youngs_for_a_small_cost_and_dalys_for_a_large_one() -> None:
    assert best_interval_s(1, 1e6) == pytest.approx(math.sqrt(2e6), rel=1e-3)
    # By Daly's table of examples' equation: cost 5 min, failures each 60 min.
    ratio = 5 / 120
    assert best_interval_s(300, 3600) == pytest.approx(60 * math.sqrt(600) * (1 + ratio**0.5 / 3 + ratio / 9))
    assert best_interval_s(100, 40) == 140, "nothing helps any more"


@pytest.mark.parametrize(("cost_s", "mtbf_s"), [(1, 1000), (30, 1000), (100, 1000), (0.01, 86400)])
def test_no_other_interval_is_expected_to_lose_much_less(cost_s: float, mtbf_s: float) -> None:
    """Daly's cost function for exponential failures, equation 20, without the restart: it is minimized by search."""

    def overhead(interval_s: float) -> float:
        return mtbf_s * (math.exp(interval_s / mtbf_s) - 1) / (interval_s - cost_s)

    tried = (cost_s * (1 + 10 ** (exponent / 200)) for exponent in range(-400, 1400))
    best = min(overhead(interval_s) for interval_s in tried if interval_s < 10 * mtbf_s)
    assert overhead(best_interval_s(cost_s, mtbf_s)) <= best * 1.001


def test_auto_measures_what_a_save_costs_beginning_when_it_was_due(loop: Loop) -> None:
    assert not loop.after(best_interval_s(5, 86400) - 1).ask("auto")
    assert loop.after(1.1).ask("auto"), "before there was one, 5 s are assumed"
    loop.after(1.5).save(0.5)  # torch.save() and save()
    best = best_interval_s(2, 86400)
    assert not loop.after(best - 0.6).ask("auto")
    assert loop.after(0.2).ask("auto")


def test_auto_goes_by_the_median_so_that_one_slow_save_changes_nothing(loop: Loop) -> None:
    for cost_s in (100, 2):
        loop.after(3600).ask("auto")
        loop.save(cost_s)
    assert loop.after(best_interval_s(2, 86400)).ask("auto"), "the first one has waited for something"
    for cost_s in (2, 100, 2):
        loop.after(3600).ask("auto")
        loop.save(cost_s)
    assert loop.after(best_interval_s(2, 86400)).ask("auto")


def test_auto_is_never_more_often_than_an_upload_takes(tmp_path: Path) -> None:
    loop = Loop(tmp_path, mtbf_s=1000)
    loop.after(600).ask("auto")
    loop.save(0.01)
    loop.write(upload_s=[10, 900, 700, 1000, 800], saved=moment(loop.clock))
    assert not loop.after(799).ask("auto")
    assert loop.after(2).ask("auto")


def test_auto_waits_for_an_upload_but_not_in_an_outage_nor_when_the_end_is_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path, mtbf_s=100, outage_s=1800)
    loop.after(600).ask("auto")
    loop.save(0.01)
    loop.write(is_on_its_way=True)
    assert not loop.after(1700).ask("auto")
    loop.write(ends={"SIGTERM": moment(loop.clock)})
    assert loop.ask("auto")
    loop.write(ends={})
    assert loop.after(101).ask("auto")
    loop.save(0.01)
    loop.write(is_on_its_way=False)
    assert loop.after(10).ask("auto")


def test_a_larger_gang_saves_more_often(loop: Loop) -> None:
    loop.spool.task = replace(TASK, nodes=100)
    loop.after(600).ask("auto", collective=False)
    loop.save(2)
    assert loop.after(best_interval_s(2, 864)).ask("auto", collective=False)


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_a_rank_has_to_say_whether_it_saves_together_with_others(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not loop.ask(), "alone"
    monkeypatch.setenv("WORLD_SIZE", "2")
    loop.due = Due(loop.spool, loop.config, loop.clock)
    with pytest.raises(UsageError, match="Each rank would decide for itself"):
        loop.ask()
    assert not loop.ask(collective=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="several machines"):
        loop.ask(collective=True)


def test_a_gangs_node_is_a_rank(loop: Loop) -> None:
    loop.spool.task = replace(TASK, nodes=2)
    with pytest.raises(UsageError, match="Each rank would decide for itself"):
        loop.ask()
    with pytest.raises(UsageError, match="several machines"):
        loop.ask(collective=True)


def test_a_process_alone_is_nobody_to_decide_together_with(loop: Loop) -> None:
    with pytest.raises(UsageError, match="needs to know which rank this is"):
        loop.ask(collective=True)
    assert who.count(TASK, {}) == 1


def test_ranks_that_save_together_save_in_the_same_call(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = [Due(loop.spool, loop.config, loop.clock, loop.note.began) for _ in range(2)]

    def ask() -> list[bool]:
        found = []
        for number, due in enumerate(ranks):
            monkeypatch.setenv("RANK", str(number))
            found.append(due.is_due(600, True))
        return found

    saves = []
    for second in range(1300):
        found = ask()
        assert found[0] == found[1]
        if found[0]:
            saves.append(second)
            for due in ranks:
                due.saved(moment(loop.clock), latest=True)
        loop.after(1)
    assert saves == [601, 1202], "in the call after the one in which rank 0 saw that it is time"

"""How fast uploads are sent while somebody trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_ckpt.agent.job import Job
from async_ckpt.agent.pace import Intervals, Order, Pace
from async_ckpt.agent.slowdown import Pressure, Slowdown
from async_ckpt.config import (
    PACE_ASSUMED_S,
    PACE_HELD_BYTES_S,
    PACE_INTERVALS,
    PACE_LAST_SHARE,
    PACE_LEAST_BYTES_S,
    PACE_MOST_S,
    PACE_NAMES,
    PACE_SHARE,
)

GB = 1_000_000_000
FAST = 1.0 * GB


class NoPressure(Pressure):
    """A kernel that tells nothing."""

    def __init__(self) -> None:
        pass

    def share(self) -> float | None:
        return None


class Said(Slowdown):
    """Training that feels uploads, or does not, as it is told to."""

    def __init__(self) -> None:
        super().__init__(0.01, NoPressure())
        self.felt: bool | None = None

    def look(self, now: float) -> bool | None:
        return self.felt


@dataclass
class World:
    """A store that takes ``known`` bytes a second, saves, and an uploader that goes by the pace."""

    known: float = FAST
    now: float = 1000.0
    hurry: str = ""
    jobs: list[Job] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    said: Said = field(default_factory=Said)
    number: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(self.said)

    def save(self, size: float = 10 * GB, name: str = "a") -> Job:
        job = Job(f"0.{name}.{self.number}", (0, self.number), int(size))
        self.number += 1
        self.pace.saved(job, self.now)
        self.jobs.append(job)
        return job

    def look(self) -> Order:
        order = self.pace.look(self.now, self.jobs, self.known, self.hurry)
        self.orders.append(order)
        return order

    def go_on(self, seconds: float, tick: float = 0.2) -> None:
        until = self.now + seconds
        while self.now < until - 1e-9:
            step = min(tick, until - self.now)
            rate = self.look().bytes_per_s
            sent = int(min(rate or self.known, self.known) * step)
            self.now += step
            while self.jobs and sent:
                count = min(sent, self.jobs[0].left)
                self.jobs[0].sent += count
                sent -= count
                if not self.jobs[0].left:
                    self.ended[self.jobs.pop(0).id] = self.now

    def saved_every(self, seconds: float, times: int = 3, **how: float) -> Job:
        """Saves at this interval, and one more now."""
        for _ in range(times):
            self.save(**how)  # type: ignore[arg-type]
            self.go_on(seconds, 1.0)
        return self.save(**how)  # type: ignore[arg-type]


class TestPace:
    def test_what_is_saved_first_is_sent_at_full_speed(self) -> None:
        world = World()
        world.save()
        assert world.look() == Order(0, "nobody knows yet when the next checkpoint will be saved")

    def test_half_of_the_interval_is_taken(self) -> None:
        world = World()
        world.saved_every(100)
        order = world.look()
        assert order.bytes_per_s == pytest.approx(10 * GB / 50, rel=0.01)
        assert order.why == "it may take 50 s, as one is saved every 100 s"
        began = world.now
        world.go_on(100)
        assert world.ended["0.a.3"] - began == pytest.approx(50, abs=2)

    def test_without_anything_to_send_there_is_no_pace(self) -> None:
        world = World()
        world.saved_every(100)
        world.go_on(60)
        assert world.look() == Order(0, "nothing is being uploaded")

    def test_next_to_nothing_is_sent_while_a_file_is_copied_for_a_writer_and_then_as_before(self) -> None:
        world = World()
        world.saved_every(100)
        before = world.look()
        held = world.pace.look(world.now, world.jobs, FAST, "the task waits", held=True)
        assert held.bytes_per_s == PACE_HELD_BYTES_S
        assert "rewrites it in place" in held.why
        assert world.pace.order == held
        assert world.pace.look(world.now, world.jobs, FAST, "") == before

    def test_a_slower_store_than_was_planned_with_is_made_up_for(self) -> None:
        world = World()
        world.saved_every(100)
        began, world.known = world.now, 0.15 * GB
        world.pace.look(world.now, world.jobs, FAST, "")
        for _ in range(1000):
            order = world.pace.look(world.now, world.jobs, FAST, "")  # Nobody has noticed.
            world.jobs[0].sent += int(min(order.bytes_per_s or world.known, world.known) * 0.2)
            world.now += 0.2
            if not world.jobs[0].left:
                break
        assert world.now - began == pytest.approx(10 / 0.15, rel=0.02)

    def test_full_speed_from_half_of_the_interval_on(self) -> None:
        world = World()
        job = world.saved_every(100)
        world.now += 51
        assert world.look() == Order(0, f"{job.id} is late: it was saved 51 s ago")

    def test_the_pace_is_lifted_in_the_very_look_in_which_there_is_a_hurry(self) -> None:
        world = World()
        world.saved_every(100)
        assert world.look().bytes_per_s
        world.hurry = "the task waits until everything is stored"
        assert world.look() == Order(0, world.hurry)

    def test_a_save_that_comes_early_hurries_those_before_it(self) -> None:
        world = World()
        world.saved_every(100)
        before = world.look().bytes_per_s
        world.go_on(10)
        world.save()
        world.go_on(1.5)
        assert not world.look().bytes_per_s or world.look().bytes_per_s > 5 * before

    def test_what_a_store_takes_only_just_is_not_slowed_down(self) -> None:
        world = World(known=0.25 * GB)
        world.saved_every(100)
        order = world.look()
        assert order.bytes_per_s == 0
        assert order.why == "a save every 100 s asks for 200 of the 250 MB/s that the store takes"

    def test_once_at_full_speed_it_stays_so_until_much_less_is_needed(self) -> None:
        world = World(known=0.35 * GB)
        world.saved_every(100)
        assert world.look().bytes_per_s == 0  # 0.57 of it: less would be asked for again.
        world.jobs[0].sent = 2 * GB
        assert world.look().bytes_per_s
        world.now += 14  # 0.64 of it.
        assert world.look().bytes_per_s

    def test_little_is_sent_at_once(self) -> None:
        world = World()
        world.saved_every(100, size=4e6)
        assert world.look() == Order(0, "there is little to send")

    def test_nothing_is_sent_so_slowly_that_it_would_look_like_a_stall(self) -> None:
        world = World()
        world.saved_every(600, size=20e6)
        assert world.look().bytes_per_s == PACE_LEAST_BYTES_S

    def test_rare_saves_are_not_drawn_out_for_hours(self) -> None:
        world = World()
        for _ in range(3):
            world.jobs.clear()
            world.save()
            world.now += 86400
        world.jobs.clear()
        world.save()
        assert world.look().bytes_per_s == pytest.approx(10 * GB / PACE_MOST_S, rel=0.01)

    def test_what_an_earlier_agent_has_left_is_sent_at_full_speed(self) -> None:
        world = World()
        world.saved_every(100)
        world.jobs.insert(0, Job("0.a.0", (0, 0), GB))
        assert world.look().bytes_per_s == 0

    def test_two_names_that_are_saved_together_have_the_interval_of_each(self) -> None:
        world = World()
        for _ in range(3):
            world.save(name="model")
            world.go_on(1)
            world.save(name="optimizer")
            world.go_on(99)
        world.save(name="model")
        world.save(name="optimizer")
        assert world.look().bytes_per_s == pytest.approx(20 * GB / 50, rel=0.05)

    def test_small_changes_are_not_told(self) -> None:
        world = World()
        world.saved_every(100)
        world.orders.clear()
        world.go_on(40)
        assert len({order.bytes_per_s for order in world.orders}) < 5


class TestFelt:
    def test_uploads_that_are_felt_take_longer_but_not_longer_than_at_full_speed_and_half_an_interval(self) -> None:
        world = World(known=0.45 * GB)
        world.saved_every(100)
        usual = world.look().bytes_per_s
        world.said.felt = True
        began = world.now
        world.go_on(20)
        assert world.look().bytes_per_s < usual
        world.go_on(80)
        most = PACE_SHARE * 100 + 10 / 0.45
        assert PACE_SHARE * 100 + 5 < world.ended["0.a.3"] - began <= most + 2
        assert most < PACE_LAST_SHARE * 100

    def test_when_they_are_not_felt_any_more_they_are_as_fast_as_before(self) -> None:
        world = World(known=0.45 * GB)
        world.saved_every(100)
        world.said.felt = True
        world.go_on(10)
        world.said.felt = False
        world.go_on(90)
        world.save()
        began = world.now
        world.go_on(100)
        assert world.ended["0.a.4"] - began == pytest.approx(50, abs=2)

    def test_where_no_interval_is_known_one_is_assumed(self) -> None:
        world = World()
        world.save()
        world.said.felt = True
        assert world.look().bytes_per_s == pytest.approx(10 * GB / (PACE_SHARE * PACE_ASSUMED_S), rel=0.02)

    def test_it_is_said_once_that_both_cannot_be_had(self) -> None:
        world = World()
        world.saved_every(100)
        world.go_on(0.2)
        assert not world.pace.news()
        world.said.felt = True
        world.go_on(10)
        assert "Save less often" in world.pace.news()
        assert not world.pace.news()

    @pytest.mark.parametrize(
        ("most", "steps", "said"), [(0.05, False, True), (0.05, True, False), (0.01, False, False)]
    )
    def test_it_is_said_once_that_nobody_tells_of_steps(self, most: float, steps: bool, said: bool) -> None:
        world, slowdown = World(), Slowdown(most, NoPressure())
        world.pace = Pace(slowdown)
        if steps:
            slowdown.heard(1, [0.1], world.now)
        world.saved_every(10)
        assert ("step()" in world.pace.news()) == said
        assert not world.pace.news()


class TestIntervals:
    def test_the_shortest_of_the_last_few_counts(self) -> None:
        intervals, now, found = Intervals(), 0.0, []
        for gap in (0, 100, 50, 100, 100, 100):
            now += gap
            found.append(intervals.saved("a", now))
        assert found == [0, 100, 50, 50, 50, 100]
        assert PACE_INTERVALS == 3

    def test_a_name_that_was_saved_once_goes_by_the_others(self) -> None:
        intervals = Intervals()
        intervals.saved("last", 0)
        intervals.saved("last", 100)
        assert intervals.saved("best", 101) == 100

    def test_names_that_never_come_again_are_looked_at_as_one(self) -> None:
        intervals = Intervals()
        found = [intervals.saved(f"epoch-{number}", 100.0 * number) for number in range(1, 200)]
        assert found == [0] + 198 * [100]
        assert len(intervals._named) <= PACE_NAMES


@st.composite
def lives(draw: st.DrawFn) -> tuple[float, list[tuple[float, float, str]]]:
    saves = st.tuples(st.floats(0, 200), st.floats(1e6, 30e9), st.sampled_from("ab"))
    return draw(st.floats(0.05, 2)) * GB, draw(st.lists(saves, min_size=1, max_size=12))


def played(known: float, saves: list[tuple[float, float, str]], hurry: str, felt: Iterator[bool]) -> World:
    world = World(known=known, hurry=hurry)
    for pause, size, name in saves:
        world.go_on(pause, 1.0)
        world.said.felt = next(felt)
        world.save(size, name)
    while world.jobs:
        world.go_on(10, 1.0)
    return world


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lives(), st.lists(st.booleans(), min_size=12, max_size=12))
def test_nothing_ends_later_than_without_a_pace_by_more_than_half_of_an_expected_interval(
    life: tuple[float, list[tuple[float, float, str]]], felt: list[bool]
) -> None:
    known, saves = life
    paced = played(known, saves, "", iter(felt))
    unpaced = played(known, saves, "asked for", iter(felt))
    intervals, now, most = Intervals(), 0.0, 0.0
    for number, (pause, size, name) in enumerate(saves):
        now += pause
        most = max(most, intervals.saved(name, now))
        identity = f"0.{name}.{number}"
        half = PACE_SHARE * (max(most, PACE_ASSUMED_S) if any(felt) else most)
        assert paced.ended[identity] <= unpaced.ended[identity] + half + 3.0, size

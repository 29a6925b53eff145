"""What would be lost now: never less than what really would be."""

from __future__ import annotations

from typing import Any

import pytest

from async_ckpt.agent.exposure import Exposure, Loss, next_words, until_durable
from async_ckpt.agent.queue import Queue
from async_ckpt.manifest import Manifest
from async_ckpt.spool import recovery
from async_ckpt.spool.journal import FAILED
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.recovery import Recovery
from async_ckpt.system.clock import Moment, moment, read_moment
from harness.common.clock import StillClock

MIB = 1 << 20


class Life:
    """A task whose checkpoints are saved and stored by hand, on a clock that stands still."""

    def __init__(self, most_s: float = 0.0) -> None:
        self.clock = StillClock()
        self.exposure = Exposure(Recovery(), self.clock, most_s)
        self.waiting: dict[tuple[int, int], Admitted] = {}
        self.attempt = 0

    def begin(self, attempt: int = 0) -> None:
        self.attempt = attempt
        self.exposure.begin(attempt, moment(self.clock), self.waiting.values())

    def after(self, seconds: float) -> Life:
        self.clock.sleep(seconds)
        return self

    def save(self, version: int, *, latest: bool = True, **shard: Any) -> Admitted:
        reference = {"attempt": self.attempt, "version_id": version, "latest": latest, "size": 0, **shard}
        item = Admitted(f"{self.attempt}.a.{version}", reference, Manifest(), "", "", moment(self.clock))
        self.waiting[item.order] = item
        self.exposure.saved(item)
        return item

    def store(self, version: int, attempt: int | None = None) -> None:
        self.exposure.committed(self.waiting.pop((self.attempt if attempt is None else attempt, version)))

    def restart(self) -> None:
        """The agent dies; another one goes by what was written down."""
        self.exposure = Exposure(self.exposure.recovery, self.clock)

    @property
    def loss(self) -> tuple[float | None, float | None, int]:
        found = self.exposure.loss(self.waiting.values())
        return found.machine_s, found.process_s, found.saves


@pytest.fixture
def life() -> Life:
    made = Life()
    made.begin()
    return made


def test_before_anything_is_saved_all_since_the_beginning_would_be_lost(life: Life) -> None:
    assert life.after(60).loss == (60, 60, 0)


def test_what_is_saved_is_lost_with_the_machine_until_it_is_stored(life: Life) -> None:
    life.after(60).save(0)
    assert life.after(5).loss == (65, 5, 1)
    life.after(60).save(1)
    assert life.after(5).loss == (130, 5, 2)
    life.store(0)
    assert life.loss == (70, 5, 1)
    life.store(1)
    assert life.after(1).loss == (6, 6, 0)


def test_of_what_is_stored_in_another_order_the_newest_counts(life: Life) -> None:
    for version in range(3):
        life.after(10).save(version)
    life.store(2)
    assert life.after(1).loss == (1, 1, 2)
    life.store(0)
    assert life.loss == (1, 1, 1)


def test_one_that_failed_and_is_not_kept_helps_nobody(life: Life) -> None:
    life.after(10).save(0)
    life.store(0)
    life.after(10).save(1)
    del life.waiting[0, 1]
    assert life.after(1).loss == (11, 11, 0)


def test_what_a_retry_does_not_load_counts_for_whoever_loads_by_hand(life: Life) -> None:
    life.after(10).save(0, latest=False)
    life.store(0)
    assert life.after(5).exposure.loss([]) == (15, 15, 5, 0)
    assert "with this machine, as a retry does not load by itself" in life.exposure.loss([]).words()
    life.after(5).save(1)
    assert life.after(1).exposure.loss(life.waiting.values()) == (21, 1, 11, 1)
    life.store(1)
    assert life.exposure.loss([]) == (1, 1, 1, 0)
    life.after(10).save(2, latest=False)
    life.store(2)
    assert life.after(1).exposure.loss([]) == (12, 12, 1, 0)


def test_when_the_last_save_was_is_told_by_those_that_a_retry_loads_once_there_are_some(life: Life) -> None:
    first = life.after(10).save(0, latest=False)
    assert life.exposure.recovery.saved == first.captured
    second = life.after(10).save(1)
    life.after(10).save(2, latest=False)
    assert life.exposure.recovery.saved == second.captured
    life.begin(1)
    assert life.exposure.recovery.saved is None


def test_a_collective_one_survives_the_process_once_all_parts_are_on_this_disk(life: Life) -> None:
    first = life.after(10).save(0, rank=0, world=2)
    assert life.after(1).loss == (11, 11, 1)
    both = [first, Admitted("0.a@1.0", {**first.reference, "rank": 1}, Manifest(), "", "", first.captured)]
    assert life.exposure.loss(both) == (11, 1, 11, 1)
    nameless = Admitted("", {**first.reference, "world": None}, Manifest(), "", "", first.captured)
    del nameless.reference["world"]
    assert life.exposure.loss([nameless]) == (11, 11, 11, 1)


def test_a_retry_loses_only_what_it_has_done_itself_if_it_began_with_what_is_stored(life: Life) -> None:
    life.after(10).save(0)
    life.store(0)
    life.after(1000).begin(1)
    assert life.after(7).loss == (7, 7, 0)
    life.after(3).save(0)
    assert life.after(1).loss == (11, 1, 1)


def test_a_retry_that_began_with_what_is_only_here_would_lose_that_as_well(life: Life) -> None:
    for version in range(3):
        life.after(10).save(version)
    life.store(0)
    life.after(5).begin(1)
    assert life.after(7).loss == (32, 7, 2), "the first one is stored, and the third one was begun with"
    life.store(1, attempt=0)
    assert life.loss == (22, 7, 1)
    life.store(2, attempt=0)
    assert life.after(1).loss == (8, 8, 0)


def test_a_retry_whose_beginning_is_stored_never_is_safe_with_its_own_save(life: Life) -> None:
    life.after(10).save(0)
    life.after(5).begin(1)
    life.after(7).save(0)
    life.store(0, attempt=1)
    assert life.after(2).loss == (2, 2, 1)


def test_an_agent_that_is_started_again_goes_on_and_an_owner_that_comes_again_changes_nothing(life: Life) -> None:
    began = moment(life.clock)
    life.after(10).save(0)
    life.store(0)
    life.restart()
    life.exposure.begin(0, began, life.waiting.values())
    life.exposure.begin(0, None, life.waiting.values())
    assert life.after(5).loss == (5, 5, 0)
    life.begin()
    assert life.after(1).loss == (1, 1, 0), "the same attempt was started anew"


def test_an_agent_that_knows_nothing_says_so() -> None:
    life = Life()
    assert life.after(10).loss == (None, None, 0)
    life.save(0)
    assert life.exposure.loss(life.waiting.values()).words() == "1 save is only on this disk"
    life.exposure.begin(0, None, life.waiting.values())
    assert life.after(4).loss == (4, 4, 1), "an owner that does not say when it began has begun now"


def test_clocks_that_are_set_change_nothing(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.after(10).save(0)
    life.store(0)
    for jump_s in (-86400, 86400):
        monkeypatch.setattr(life.clock, "time_ns", lambda jump_s=jump_s: int((life.clock.now + jump_s) * 1e9))
        assert life.loss == (0, 0, 0)
    assert life.after(5).loss == (5, 5, 0)


def test_after_a_reboot_the_wall_clock_counts_but_no_less_than_the_time_since_then() -> None:
    now = Moment(100.0, "second time:[1]", 1_000_000_000_000)
    assert Moment(90.0, "second time:[1]", 0).age_s(now) == 10
    assert Moment(5000.0, "first time:[1]", 700_000_000_000).age_s(now) == 300
    assert Moment(5000.0, "first time:[1]", 2_000_000_000_000).age_s(now) == 100, "it was set back since"
    assert Moment(5000.0, "second time:[2]", 990_000_000_000).age_s(now) == 10, "a container's clock"
    assert Moment(0.0, "", 990_000_000_000).age_s(now) == 10, "an earlier version's record"


def test_what_was_written_earlier_is_as_old_as_that() -> None:
    now = Moment(100.0, "boot", 1_000_000_000_000)
    assert now.back_to(970_000_000_000).age_s(now) == 30
    assert now.back_to(970_000_000_000).wall_ns == now.wall_ns
    assert now.back_to(1_001_000_000_000) == now, "by a clock that is ahead"
    assert now.back_to(0).age_s(now) == 100, "before the machine was booted"


def test_max_exposure_is_said_once_and_once_when_it_is_over() -> None:
    life = Life(most_s=900)
    life.begin()

    def said(next_one: str = "soon") -> str:
        return life.exposure.warning(life.exposure.loss(life.waiting.values()), next_one)

    assert not said()
    life.after(901)
    lost = "max_exposure=900 s is exceeded: the work of the last 901 s would be lost with this machine"
    assert said() == f"{lost}; nothing was saved since"
    assert not said()
    life.save(0)
    assert not said()
    life.store(0)
    assert said() == "max_exposure is kept again: of the last 0 s the work would be lost now"
    assert not said()
    life.save(1)
    life.after(901)
    assert said() == f"{lost}; 1 save is only on this disk; soon"


def test_an_end_that_is_told_again_is_no_new_one(life: Life) -> None:
    assert life.exposure.hear_of_ends(["notice"]) == ["notice"]
    heard = life.exposure.recovery.ends["notice"]
    life.after(5).restart()
    assert life.exposure.hear_of_ends(["notice"]) == []
    assert life.exposure.hear_of_ends(["notice", "SIGTERM"]) == ["SIGTERM"]
    assert life.exposure.recovery.ends["notice"] == heard
    life.exposure.hear_of_ends([])
    assert life.exposure.recovery.ends == {}


def test_what_is_written_down_is_read_again_and_what_is_damaged_is_nothing(life: Life, tmp_path: Any) -> None:
    life.after(10).save(0)
    life.store(0)
    life.exposure.hear_of_ends(["notice"])
    assert life.exposure.has_news
    recovery.write(str(tmp_path), life.exposure.recovery)
    life.exposure.is_written()
    assert not life.exposure.has_news
    assert recovery.read(str(tmp_path)) == life.exposure.recovery
    whole = (tmp_path / recovery.NAME).read_bytes()
    for damaged in (b"", whole[:-1], b"[]", b'{"attempt": 0}', whole.replace(b'"upload_s":[', b'"upload_s":["x",')):
        (tmp_path / recovery.NAME).write_bytes(damaged)
        assert recovery.read(str(tmp_path)) == Recovery()


@pytest.mark.parametrize(
    "value", [None, [], [1.0], [1.0, "boot"], ["1", "boot", 1], [float("nan"), "b", 1], [-1.0, "b", 1], [1.0, "b", 2.5],
              [1.0, "b", 1 << 80], [True, "b", 1]]
)  # fmt: skip
def test_what_is_no_moment_is_none(value: Any) -> None:
    assert read_moment(value) is None


# -- when the next one is in the store ---------------------------------------------------------------------------------


def queue(*sizes: int, begun: int = 0) -> Queue:
    made = Queue(max(begun, 1))
    for version, size in enumerate(sizes):
        made.add(f"0.a.{version}", (0, version), size)
    if begun:
        made.next_actions()
    return made


def test_the_next_one_is_estimated_from_what_is_left_and_what_is_measured() -> None:
    assert until_durable(queue(100 * MIB, begun=1), MIB, "") == (100, "")
    assert until_durable(queue(100 * MIB, 20 * MIB, begun=2), MIB, "") == (120, ""), "two share the line"
    assert until_durable(queue(20 * MIB, 100 * MIB, begun=2), MIB, "") == (40, "")
    sent = queue(100 * MIB, begun=1)
    sent.jobs["0.a.0"].sent = 99 * MIB
    assert until_durable(sent, MIB, "") == (1, "")
    sent.uploaded("0.a.0")
    assert until_durable(sent, MIB, "") == (0, "")


def test_where_the_next_one_cannot_be_estimated_the_reason_is_said() -> None:
    assert until_durable(queue(), MIB, "") == (None, "nothing waits for the store")
    assert "nobody knows how fast" in until_durable(queue(MIB), 0, "")[1]
    assert until_durable(queue(MIB), MIB, "no uploader can be had") == (None, "no uploader can be had")
    held_up = queue(MIB, MIB)
    held_up.jobs["0.a.0"].why = "held up"
    assert until_durable(held_up, MIB, "") == (None, "0.a.0: held up")
    held_up.pass_by("0.a.0")
    assert until_durable(held_up, MIB, "") == (1, ""), "newer ones are committed without it"
    held_up.end("0.a.1", FAILED)
    assert until_durable(held_up, MIB, "") == (None, "0.a.0: held up")
    ranks = Queue(1)
    ranks.add("0.a@0.1", (0, 1), MIB, shard=True)
    assert until_durable(ranks, MIB, "") == (None, "other ranks save parts of it as well")
    ranks.uploaded("0.a@0.1")
    assert until_durable(ranks, MIB, "") == (None, "other ranks are not as far")


def test_words() -> None:
    assert next_words(39.2, "") == "the next one is in the store in about 40 s"
    assert next_words(None, "0.a.0: out of reach").endswith("is not known: 0.a.0: out of reach")
    assert Loss(60.0, 60.0, 60.0, 0).words() == (
        "the work of the last 60 s would be lost with this machine; nothing was saved since"
    )

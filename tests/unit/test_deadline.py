"""What goes when time is short, and what a notice of the machine's end says."""

from __future__ import annotations

import datetime
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.agent import spot_notice
from async_ckpt.agent.deadline import LastCall, plan
from async_ckpt.agent.job import Job
from async_ckpt.agent.queue import Action, Queue
from async_ckpt.agent.spot_notice import SpotNotice
from async_ckpt.agent.throughput import Throughput
from async_ckpt.config import LAST_CALL_MOST_S, PIECE_BYTES, Config
from async_ckpt.spool.journal import COMMITTED, FAILED, UPLOADED, UPLOADING, CheckpointState
from async_ckpt.system.clock import REAL_CLOCK
from harness.common.clock import StillClock

MIB = 1 << 20


def jobs(*left: int) -> list[Job]:
    """Newest first; each ten times as large as what may go beside others anyway."""
    return [Job(str(number), (0, number), size * 10 * MIB) for number, size in reversed(list(enumerate(left)))]


def chosen(newest_first: list[Job], rate: float = 10, seconds: float = 10, most: int = 1, **strikes: int) -> list[str]:
    for job in newest_first:
        job.strikes = strikes.get(f"n{job.id}", 0)
    return [job.id for job in plan(newest_first, rate * 10 * MIB, seconds, most)]


class TestPlan:
    def test_the_newest_that_fits_goes_first(self) -> None:
        assert chosen(jobs(10, 20, 30, 1000)) == ["2"]

    def test_not_all_of_the_time_is_planned_with(self) -> None:
        assert chosen(jobs(10, 99)) == ["0"]

    def test_what_is_under_way_goes_on_while_it_may_be_there_in_time(self) -> None:
        newest_first = jobs(10, 99)
        newest_first[0].state = UPLOADING
        assert chosen(newest_first) == ["1"]

    def test_what_is_sent_already_counts(self) -> None:
        newest_first = jobs(10, 1000)
        newest_first[0].sent = 850 * 10 * MIB
        newest_first[0].state = UPLOADING
        assert chosen(newest_first) == ["0"]

    def test_what_is_uploaded_needs_no_more(self) -> None:
        newest_first = jobs(10, 1000)
        newest_first[0].state = UPLOADED
        assert chosen(newest_first) == ["0"]

    def test_where_nothing_fits_it_is_the_quickest(self) -> None:
        assert chosen(jobs(700, 600, 900)) == ["1"]

    def test_where_no_rate_is_known_it_is_the_newest_alone(self) -> None:
        assert chosen(jobs(0, 10, 1000), rate=0, most=2) == ["2"]

    def test_what_pauses_cannot_go(self) -> None:
        newest_first = jobs(10, 20, 30)
        newest_first[0].not_before = math.inf
        assert chosen(newest_first) == ["1"]

    def test_what_has_given_way_comes_after_the_others_and_comes_again(self) -> None:
        assert chosen(jobs(10, 20, 30), n2=1) == ["1"]
        assert chosen(jobs(10, 20, 30), n2=1, n1=1, n0=1) == ["2"]

    def test_small_ones_go_beside_a_big_one_if_they_fit_as_well(self) -> None:
        assert chosen(jobs(3, 2, 1, 40), most=3) == ["3", "2", "1"]
        assert chosen(jobs(3, 30, 40), most=3) == ["2", "0"]
        assert chosen(jobs(3, 79), most=2) == ["1"]

    def test_nothing_that_has_given_way_goes_beside_what_has_not(self) -> None:
        assert chosen(jobs(1, 40), most=2, n0=1) == ["1"]

    def test_of_nothing_it_is_nothing(self) -> None:
        assert chosen([]) == []


class Uploader:
    """An uploader that does nothing, and hears what it is told."""

    is_awake = True

    def __init__(self) -> None:
        self.paused: list[str] = []

    def tell(self, message: dict[str, Any]) -> None:
        assert message["op"] == "pause"
        self.paused.append(message["id"])


class _NothingStored:
    """A journal that knows of nothing."""

    def of(self, identity: str) -> CheckpointState:
        return CheckpointState()


class Scene:
    """A queue whose oldest uploads are under way, and what is decided about it."""

    def __init__(self, config: Config, sizes: list[int]) -> None:
        self.clock, self.uploader, self.queue, self.said = (
            StillClock(),
            Uploader(),
            Queue(config.max_uploads),
            list[Any](),
        )
        throughput = Throughput(self.clock)
        throughput.assume(MIB)
        self.last_call = LastCall(
            self.queue, _NothingStored(), throughput, self.uploader, config, self.said.append,  # type: ignore[arg-type]
            self.clock,
        )  # fmt: skip
        for number, size in enumerate(sizes):
            self.queue.add(f"0.a.{number}", (0, number), size * MIB)
        self.queue.next_actions()

    def tick(self, seconds: float = 0.2) -> list[Action]:
        self.clock.now += seconds
        self.last_call.tick(self.clock.now)
        return self.queue.next_actions()

    def told(self) -> str:
        return "\n".join(str(push) for push in self.said)


@pytest.fixture
def scene() -> Scene:
    """Four that take 2 s each, one of which is under way."""
    return Scene(Config(max_uploads=1, spot_notice_file=""), [2, 2, 2, 2])


def upload(number: int) -> list[Action]:
    return [Action("upload", (f"0.a.{number}",))]


class TestLastCall:
    def test_whatever_may_be_lost_is_named_also_what_goes_beside_and_what_waits_for_its_commit(self) -> None:
        scene = Scene(Config(max_uploads=2, spot_notice_file=""), [2, 2, 2, 20])
        scene.queue.uploaded("0.a.0")
        scene.last_call.hear(25, "SIGTERM")
        (push,) = scene.said
        assert (push["id"], push["beside"], push["ids"]) == ("0.a.3", ["0.a.1", "0.a.0"], ["0.a.2"])
        scene.said.clear()
        for number in (2, 3):
            scene.queue.end(f"0.a.{number}", COMMITTED)
        scene.last_call.choose_again("0.a.3 is stored")
        assert scene.told().endswith("'0.a.3 is stored: 0.a.1, 0.a.0 may still be stored'}")

    def test_where_all_that_wait_are_held_up_they_are_named_as_well(self, scene: Scene) -> None:
        for number in range(2, 4):
            scene.queue.end(f"0.a.{number}", COMMITTED)
        for number in range(2):
            scene.queue.pause(f"0.a.{number}")
        scene.last_call.hear(15, "SIGTERM")
        scene.queue.uploaded("0.a.0")
        scene.last_call.choose_again("0.a.0 is stored")
        scene.last_call.hear(5, "the notice")
        assert [push["why"] for push in scene.said] == [
            "SIGTERM: 15 s are left: held up, and tried again: 0.a.1, 0.a.0",
            "the notice: 5 s are left: 0.a.0 may still be stored; held up, and tried again: 0.a.1",
        ]

    def test_what_is_refused_gives_way_at_once(self, scene: Scene) -> None:
        scene.last_call.hear(15, "SIGTERM")
        assert scene.uploader.paused == ["0.a.0"]
        assert scene.queue.next_actions() == upload(3)
        scene.queue.end("0.a.3", FAILED, "refused")
        scene.last_call.choose_again("0.a.3 failed")
        assert scene.queue.next_actions() == upload(2)
        assert "0.a.3 failed" in scene.told()

    def test_what_pauses_gives_way_and_comes_again_when_nothing_else_is_left(self, scene: Scene) -> None:
        scene.last_call.hear(15, "SIGTERM")
        scene.queue.next_actions()
        scene.queue.pause("0.a.3")
        scene.last_call.stumbled(["0.a.3"], "0.a.3 failed (500)")
        assert scene.queue.next_actions() == upload(2)
        scene.queue.resume("0.a.3")
        assert scene.tick() == []
        for number in (2, 1, 0):
            scene.queue.end(f"0.a.{number}", COMMITTED)
            scene.tick()
        assert [job.id for job in scene.queue.uploading] == ["0.a.3"]

    def test_what_fails_is_said_also_where_another_one_goes_first(self, scene: Scene) -> None:
        scene.last_call.hear(60, "SIGTERM")
        scene.last_call.stumbled(["0.a.1"], "0.a.1 failed (no)")
        assert scene.last_call.first == "0.a.3"
        assert "0.a.1 failed (no), and gives way" in str(scene.said[-1])

    def test_what_gets_nowhere_gives_way_and_bytes_sent_again_are_nothing_new(self, scene: Scene) -> None:
        scene.last_call.hear(15, "SIGTERM")
        scene.tick()
        (job,) = scene.queue.uploading
        for _ in range(100):
            job.sent = MIB - job.sent
            if started := scene.tick():
                break
        assert started == upload(2)
        assert scene.clock.now < 1000 + 4
        assert "gets nowhere" in scene.told() or "too slow" in scene.told()

    def test_what_is_slower_than_planned_gives_way_if_another_one_may_be_there_in_time(self, scene: Scene) -> None:
        scene.last_call.hear(15, "SIGTERM")
        scene.tick()
        (job,) = scene.queue.uploading
        for _ in range(100):
            job.sent += 100
            if started := scene.tick():
                break
        assert started == upload(2)
        assert scene.clock.now < 1000 + 4
        assert "too slow" in scene.told()

    def test_one_that_is_alone_is_begun_anew_ever_more_rarely(self) -> None:
        scene = Scene(Config(spot_notice_file=""), [2])
        scene.last_call.hear(60, "SIGTERM")
        begun = []
        while scene.clock.now < 1058:
            if scene.tick():
                begun.append(scene.clock.now)
        assert 2 <= len(begun) <= 5
        assert begun[1] - begun[0] > LAST_CALL_MOST_S

    def test_on_a_slow_line_nothing_gives_way_for_want_of_a_piece_that_cannot_be_there_yet(self) -> None:
        """Bytes are counted by the piece: of two that share half a MiB a second, each has one in a second."""
        scene = Scene(Config(max_uploads=2, spot_notice_file=""), [0, 1])
        scene.last_call._throughput.assume(MIB / 2)
        scene.last_call.hear(4.5, "SIGTERM")
        scene.queue.next_actions()
        for _ in range(2):
            for _ in range(9):
                scene.tick(0.1)
            for job in scene.queue.uploading:
                job.sent += PIECE_BYTES
        assert "gets nowhere" not in scene.told()
        for _ in range(22):
            scene.tick(0.1)
        assert "gets nowhere" in scene.told()

    def test_a_commit_that_gets_nowhere_gives_way(self, scene: Scene) -> None:
        scene.last_call.hear(15, "SIGTERM")
        scene.queue.next_actions()
        for number in (3, 2):
            scene.queue.uploaded(f"0.a.{number}")
            scene.last_call.choose_again()
            scene.queue.next_actions()
        commits: list[Action] = []
        while not commits and scene.clock.now < 1014:
            commits = [action for action in scene.tick() if action.kind == "commit"]
        assert commits == [Action("commit", ("0.a.2",))]
        assert "0.a.3" in scene.uploader.paused
        # It is tried again while there is nothing else to commit, and only so long.
        scene.queue.end("0.a.2", COMMITTED)
        scene.uploader.paused.clear()
        assert [action for action in scene.tick() if action.kind == "commit"] == [Action("commit", ("0.a.3",))]
        scene.queue.add("0.a.4", (0, 4), 0)
        scene.queue.uploaded("0.a.4")
        assert [action for action in scene.tick() if action.kind == "commit"] == [Action("commit", ("0.a.4",))]
        assert "0.a.3" in scene.uploader.paused

    def test_nothing_is_judged_before_the_uploader_is_awake(self, scene: Scene) -> None:
        scene.uploader.is_awake = False
        scene.last_call.hear(15, "SIGTERM")
        scene.queue.next_actions()
        for _ in range(50):
            assert scene.tick() == []

    def test_an_end_that_is_far_changes_the_order_and_holds_nothing(self, scene: Scene) -> None:
        scene.last_call.hear(3600, "a notice")
        assert scene.uploader.paused == []
        assert scene.queue.next_actions() == []
        scene.queue.end("0.a.0", COMMITTED)
        assert scene.tick() == upload(3)
        scene.clock.now += 3590
        scene.tick()
        assert "given up" in scene.told()
        assert scene.said[0]["why"].startswith("a notice: 3600 s are left;")
        assert scene.said[1]["why"] == "a notice: 10 s are left"

    @pytest.mark.parametrize("seconds", [90_000, 1e12, float("inf")])
    def test_an_end_in_years_is_none_and_is_said_once(self, scene: Scene, seconds: float) -> None:
        scene.last_call.hear(seconds, "a notice")
        scene.tick()
        assert scene.uploader.paused == []
        assert not scene.last_call.is_near
        assert len(scene.said) == 1
        assert "no end of a machine" in scene.told()

    def test_of_several_ends_the_earliest_counts_and_when_all_have_passed_all_goes_on(self, scene: Scene) -> None:
        scene.last_call.hear(100, "a notice")
        scene.queue.next_actions()
        scene.last_call.hear(10, "SIGTERM")
        scene.last_call.hear(50, "SIGTERM")
        scene.tick(11)
        assert scene.last_call.is_near
        scene.tick(90)
        assert not scene.last_call.is_near
        assert scene.last_call.first is None
        scene.queue.end("0.a.3", COMMITTED)
        assert scene.queue.next_actions() == upload(0)

    def test_a_notice_that_is_taken_away_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "notice"
        scene = Scene(Config(max_uploads=1, spot_notice_file=str(path)), [2, 2])
        when = datetime.datetime.fromtimestamp(scene.clock.time() + 60, datetime.timezone.utc)
        path.write_text(when.isoformat())
        assert scene.tick(2) == upload(1)
        path.unlink()
        scene.tick(2)
        assert not scene.last_call.is_near
        scene.queue.end("0.a.1", COMMITTED)
        assert scene.queue.next_actions() == upload(0)


class TestNotice:
    @pytest.fixture(autouse=True)
    def _always(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(spot_notice, "NOTICE_LOOK_S", 0)
        self.path, self.clock = tmp_path / "notice", REAL_CLOCK
        self.notice = SpotNotice(str(self.path), 30, self.clock)

    def write(self, seconds: float, form: str = "%Y-%m-%dT%H:%M:%SZ") -> None:
        when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        self.path.write_text(when.strftime(form))

    def test_no_file_is_no_notice(self) -> None:
        assert self.notice.seconds_left() is None
        assert SpotNotice("", 30, self.clock).seconds_left() is None

    @pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%S\n"])
    def test_it_says_when_and_is_told_once(self, form: str) -> None:
        self.write(120, form)
        assert self.notice.seconds_left() == pytest.approx(120, abs=60)
        assert self.notice.seconds_left() is None

    @pytest.mark.parametrize("text", ["", "soon", "\0\xff", "2026-13-45T99:99:99Z", "0001-01-01T00:00:00+23:59"])
    def test_one_that_cannot_be_read_leaves_the_usual_time_from_when_it_was_written(self, text: str) -> None:
        self.path.write_text(text)
        if text.startswith("0001"):
            assert (self.notice.seconds_left() or 0) <= 30
            return
        assert self.notice.seconds_left() == pytest.approx(30, abs=20)
        os.utime(self.path, (1e9, 1e9))
        of_another_agent = SpotNotice(str(self.path), 30, self.clock)
        assert of_another_agent.seconds_left() is None
        assert of_another_agent.is_withdrawn

    @pytest.mark.parametrize(
        "form",
        [
            '{"action": "terminate", "time": "%Y-%m-%dT%H:%M:%SZ"}',
            "\ufeff%Y-%m-%dT%H:%M:%SZ\r\n",
            "%Y-%m-%dT%H:%M:%S.1234567Z",
            "%Y-%m-%d %H:%M:%S+0000",
            '{"Events": [{"EventType": "Preempt", "NotBefore": "%a, %d %b %Y %H:%M:%S GMT"}]}',
        ],
    )
    def test_the_time_is_found_in_whatever_the_cloud_has_said(self, form: str) -> None:
        self.write(300, form)
        assert self.notice.seconds_left() == pytest.approx(300, abs=60)

    @pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "TRUE"])
    def test_one_that_is_written_again_and_again_is_told_once_and_its_end_does_not_move(self, form: str) -> None:
        self.write(300, form)
        text, start = self.path.read_text(), time.time()
        assert self.notice.seconds_left() is not None
        for seconds in range(1, 5):
            self.path.write_text(text)
            os.utime(self.path, (start + seconds, start + seconds))
            assert self.notice.seconds_left() is None
        assert not self.notice.is_withdrawn

    def test_one_without_a_time_that_is_over_may_come_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path.write_text("TRUE")
        assert self.notice.seconds_left() is not None
        later = time.time() + 40
        monkeypatch.setattr(time, "time", lambda: later)
        assert self.notice.seconds_left() is None
        assert self.notice.is_withdrawn
        os.utime(self.path, (later, later))
        assert self.notice.seconds_left() == pytest.approx(30, abs=1)

    def test_one_of_the_past_is_somebody_elses(self) -> None:
        self.write(-3600)
        assert self.notice.seconds_left() is None
        self.write(3600)
        assert self.notice.seconds_left() is not None

    def test_a_later_one_is_told_as_well_and_one_that_is_gone_is_withdrawn(self) -> None:
        self.write(120)
        assert self.notice.seconds_left() is not None
        self.write(300)
        assert self.notice.seconds_left() == pytest.approx(300, abs=60)
        assert not self.notice.is_withdrawn
        self.path.unlink()
        assert self.notice.seconds_left() is None
        assert self.notice.is_withdrawn

    def test_what_is_no_file_is_no_notice_and_nobody_waits_for_it(self) -> None:
        os.mkfifo(self.path)
        assert self.notice.seconds_left() is None
        self.path.unlink()
        self.path.mkdir()
        assert self.notice.seconds_left() is None

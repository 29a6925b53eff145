"""What is chosen when time is short, and what a notice of the machine's end says."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from async_ckpt.agent import deadline
from async_ckpt.agent.deadline import Notice, choose
from async_ckpt.agent.queue import Job
from async_ckpt.spool.journal import UPLOADED, UPLOADING


def jobs(*left: int) -> list[Job]:
    """Newest first."""
    return [Job(str(number), (0, number), size) for number, size in reversed(list(enumerate(left)))]


class TestChoose:
    def test_the_newest_that_fits_goes_first(self) -> None:
        assert choose(jobs(10, 20, 30, 1000), 10, 10).id == "2"  # type: ignore[union-attr]

    def test_not_all_of_the_time_is_planned_with(self) -> None:
        assert choose(jobs(10, 99), 10, 10).id == "0"  # type: ignore[union-attr]

    def test_what_is_sent_already_counts(self) -> None:
        newest_first = jobs(10, 1000)
        newest_first[0].sent = 950
        newest_first[0].state = UPLOADING
        assert choose(newest_first, 10, 10).id == "1"  # type: ignore[union-attr]

    def test_what_is_uploaded_always_fits(self) -> None:
        newest_first = jobs(10, 1000)
        newest_first[0].state = UPLOADED
        assert choose(newest_first, 10, 0).id == "1"  # type: ignore[union-attr]

    def test_where_nothing_fits_it_is_the_quickest(self) -> None:
        assert choose(jobs(700, 600, 900), 10, 10).id == "1"  # type: ignore[union-attr]

    def test_where_no_rate_is_known_it_is_the_newest(self) -> None:
        assert choose(jobs(10, 1000), 0, 10).id == "1"  # type: ignore[union-attr]

    def test_of_nothing_it_is_nothing(self) -> None:
        assert choose([], 10, 10) is None


class TestNotice:
    @pytest.fixture(autouse=True)
    def _always(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(deadline, "_LOOK_S", 0)
        self.path = tmp_path / "notice"
        self.notice = Notice(str(self.path), 30)

    def write(self, seconds: float, form: str = "%Y-%m-%dT%H:%M:%SZ") -> None:
        when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        self.path.write_text(when.strftime(form))

    def test_no_file_is_no_notice(self) -> None:
        assert self.notice.seconds_left() is None
        assert Notice("", 30).seconds_left() is None

    @pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%S\n"])
    def test_it_says_when_and_is_told_once(self, form: str) -> None:
        self.write(120, form)
        assert self.notice.seconds_left() == pytest.approx(120, abs=60)
        assert self.notice.seconds_left() is None

    @pytest.mark.parametrize("text", ["", "soon", "\0\xff", "2026-13-45T99:99:99Z"])
    def test_one_that_cannot_be_read_leaves_the_usual_time(self, text: str) -> None:
        self.path.write_text(text)
        assert self.notice.seconds_left() == 30

    def test_one_of_the_past_is_somebody_elses(self) -> None:
        self.write(-3600)
        assert self.notice.seconds_left() is None
        self.write(3600)
        assert self.notice.seconds_left() is not None

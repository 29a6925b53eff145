"""Whether the training feels uploads."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.agent.slowdown import Pressure, Slowdown
from async_ckpt.config import STEPS_LEAST, STEPS_PROCESSES


class Told(Pressure):
    def __init__(self, told: float | None = None) -> None:
        self.told = told

    def share(self) -> float | None:
        return self.told


class Training:
    """A second at a time: steps of 50 ms, which take so much longer."""

    def __init__(self, pressure: float | None = None) -> None:
        self.slowdown, self.now = Slowdown(0.01, Told(pressure)), 100.0

    def go_on(self, seconds: int, *, uploading: bool, longer: float = 0.0, who: int = 1) -> None:
        for _ in range(seconds):
            self.slowdown.see(self.now, is_uploading=uploading)
            self.now += 1
            self.slowdown.heard(who, [0.05 * (1 + longer)] * 19, self.now)


class TestSteps:
    @pytest.mark.parametrize(("longer", "felt"), [(0.03, True), (0.0, False), (0.008, None)])
    def test_those_during_uploads_are_compared_with_those_without(self, longer: float, felt: bool | None) -> None:
        training = Training()
        training.go_on(10, uploading=False)
        training.go_on(10, uploading=True, longer=longer)
        assert training.slowdown.share == pytest.approx(longer)
        assert training.slowdown.look(training.now) is felt

    def test_it_is_not_looked_again_at_once(self) -> None:
        training = Training()
        training.go_on(10, uploading=False)
        training.go_on(10, uploading=True, longer=0.5)
        assert training.slowdown.look(training.now) is True
        assert training.slowdown.look(training.now) is None

    def test_nothing_is_known_before_there_are_enough_of_both(self) -> None:
        training = Training()
        training.go_on(10, uploading=True, longer=0.5)
        assert training.slowdown.share is None
        training.go_on(10, uploading=False)
        training.go_on(2, uploading=True, longer=0.5)
        assert STEPS_LEAST > 19
        assert training.slowdown.share is None

    def test_a_moment_in_which_an_upload_began_counts_for_nothing(self) -> None:
        training = Training()
        training.go_on(10, uploading=False)
        for _ in range(20):
            training.go_on(1, uploading=True, longer=0.5)
            training.slowdown.see(training.now, is_uploading=False)
        assert training.slowdown.share is None

    def test_a_step_with_an_evaluation_in_it_does_not_count_for_more_than_two(self) -> None:
        training = Training()
        training.go_on(10, uploading=False)
        training.go_on(10, uploading=True)
        training.slowdown.heard(1, [0.5], training.now)
        assert training.slowdown.share == pytest.approx(1 / 172, rel=0.3)

    def test_a_new_rate_is_judged_anew(self) -> None:
        training = Training()
        training.go_on(10, uploading=False)
        training.go_on(10, uploading=True, longer=0.5)
        training.slowdown.begin_anew()
        assert training.slowdown.share is None

    def test_each_process_is_compared_with_itself(self) -> None:
        training = Training()
        for who, longer in ((1, 0.0), (2, 9.0)):
            training.go_on(10, uploading=False, longer=longer, who=who)
        for who, longer in ((1, 0.0), (2, 9.0)):
            training.go_on(5, uploading=True, longer=longer, who=who)
        assert training.slowdown.share == pytest.approx(0)

    def test_processes_that_come_and_go_are_forgotten(self) -> None:
        training = Training()
        for who in range(3 * STEPS_PROCESSES):
            training.go_on(2, uploading=False, who=who)
        assert len(training.slowdown._quiet) == STEPS_PROCESSES


def test_who_tells_of_steps_trains_for_a_while() -> None:
    training = Training()
    assert not training.slowdown.is_training(training.now)
    training.go_on(1, uploading=False)
    assert training.slowdown.is_training(training.now + 60)
    assert not training.slowdown.is_training(training.now + 3600)


class TestPressure:
    @pytest.mark.parametrize(("share", "felt"), [(0.3, True), (0.01, False), (None, None)])
    def test_it_counts_where_no_steps_are_told(self, share: float | None, felt: bool | None) -> None:
        training = Training(share)
        training.slowdown.see(training.now, is_uploading=True)
        assert training.slowdown.look(training.now) is felt

    def test_steps_count_for_more(self) -> None:
        training = Training(0.9)
        training.go_on(10, uploading=False)
        training.go_on(10, uploading=True)
        assert training.slowdown.look(training.now) is False

    @staticmethod
    def write(path: Path, avg10: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"some avg10=90.00 avg60=1.00 avg300=1.00 total=1\nfull avg10={avg10:.2f} avg60=1.00 avg300=1.00 total=1\n"
        )

    def test_that_of_the_cgroup_comes_before_that_of_the_machine(self, tmp_path: Path) -> None:
        self.write(tmp_path / "proc/pressure/io", 50)
        assert Pressure(str(tmp_path)).share() == pytest.approx(0.5)
        (tmp_path / "proc/self").mkdir()
        (tmp_path / "proc/self/cgroup").write_text("12:cpu:/\n0::/pods/mine\n")
        assert Pressure(str(tmp_path)).share() == pytest.approx(0.5)
        self.write(tmp_path / "sys/fs/cgroup/pods/mine/io.pressure", 2)
        self.write(tmp_path / "sys/fs/cgroup/pods/mine/memory.pressure", 7)
        assert Pressure(str(tmp_path)).share() == pytest.approx(0.07)

    def test_many_kernels_tell_nothing(self, tmp_path: Path) -> None:
        assert Pressure(str(tmp_path)).share() is None

    def test_what_it_says_may_be_anything(self, tmp_path: Path) -> None:
        path = tmp_path / "proc/pressure/io"
        for text in ("", "full", "full avg10=", "full avg10=x y", "full avg10=12 "):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            Pressure(str(tmp_path)).share()

"""What is sent as fast as can be, whatever the pace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from async_ckpt.agent import requests as requests_module
from async_ckpt.agent.pace import Pace
from async_ckpt.agent.questions import Questions
from async_ckpt.agent.queue import Queue
from async_ckpt.agent.requests import Requests
from async_ckpt.agent.slowdown import Pressure, Slowdown
from async_ckpt.config import PACE_EXPOSURE_SHARE, WAITS_AGAIN_S, Config
from harness.common.clock import StillClock


class Owners(list[int]):
    @property
    def pids(self) -> list[int]:
        return [*self]


class World:
    """An agent whose task trains, with a checkpoint of 1,000 bytes on its way to a store that takes 100 a second."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock, self.queue, self.owners = StillClock(), Queue(2), Owners([4711])
        self.last_call, self.lost_s = SimpleNamespace(is_known=False), 0.0
        exposure = SimpleNamespace(loss=lambda waiting: SimpleNamespace(machine_s=self.lost_s))
        parts: Any = SimpleNamespace(
            spool=SimpleNamespace(directory=str(folder)), config=Config(**settings), clock=self.clock,
            queue=self.queue, journal=None, uploader=SimpleNamespace(pid=None), leases=None, owners=self.owners,
            starts=None, socket_saves=None, last_call=self.last_call, throughput=SimpleNamespace(known=100.0),
            exposure=exposure, pace=Pace(Slowdown(0.01, Pressure())), card=None, retaining=None,
            annotating=SimpleNamespace(left=0),
        )  # fmt: skip
        self.requests = Requests(parts, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
        self.connection: Any = object()
        self.queue.add("0.a.0", (0, 0), 1000)
        self.queue.next_actions()

    @property
    def why(self) -> str:
        return self.requests.why_hurry()

    def ask(self, op: str) -> None:
        """Somebody asks, and has no answer yet."""
        self.requests.questions = Questions(lambda *_: None, self.clock)
        self.requests.questions.add(self.connection, {"op": op, "seq": 1}, 100.0)


def test_while_somebody_trains_there_is_no_hurry(tmp_path: Path) -> None:
    assert World(tmp_path).why == ""


def test_it_can_be_asked_for(tmp_path: Path) -> None:
    assert World(tmp_path, pace="full").why == "pace=full was asked for"


def test_nobody_trains_where_the_task_is_gone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.owners.clear()
    assert world.why == "the task is gone"


def test_the_end_of_the_machine_is_a_hurry_however_far_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.last_call.is_known = True
    assert world.why == "the end of this machine is known"


@pytest.mark.parametrize("op", ["flush", "wait", "room"])
def test_whoever_waits_is_in_a_hurry_also_between_two_questions(tmp_path: Path, op: str) -> None:
    world = World(tmp_path)
    world.ask(op)
    assert "wait" in world.why
    world.requests.questions.forget(world.connection)
    assert "wait" in world.why
    world.clock.now += WAITS_AGAIN_S
    assert world.why == ""


@pytest.mark.parametrize("settings", [{"max_pending": 1}, {"max_pending_bytes": 1000}])
def test_a_backlog_that_has_no_room_for_another_save_is_a_hurry(tmp_path: Path, settings: dict[str, int]) -> None:
    assert "no save would find room" in World(tmp_path, **settings).why


def test_so_is_work_that_max_exposure_would_not_have_lost(tmp_path: Path) -> None:
    world = World(tmp_path, max_exposure_s=100.0)
    needed_s = 1000 / 100
    world.lost_s = 100 * PACE_EXPOSURE_SHARE - needed_s - 1
    assert world.why == ""
    world.lost_s += 2
    assert world.why == "max_exposure is near"


def test_a_task_that_does_nothing_is_not_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = SimpleNamespace(look=lambda now, pids, ours: list(pids) == [4711])
    monkeypatch.setattr(requests_module, "Idleness", lambda: idle)
    world = World(tmp_path)
    assert world.why == "the task does nothing that could be slowed down"
    world.requests._pace.slowdown.heard(4711, [1.0], world.clock.now)
    assert world.why == "", "it waits for its accelerator"

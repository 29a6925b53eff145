"""When the agent has the card written, and that nothing which goes wrong with it harms uploads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from async_ckpt.agent.card import Card
from async_ckpt.config import CARD_BEAT_S, CARD_END_S, CARD_REFRESH_S, Config
from harness.common.clock import StillClock


class Scene:
    """The card of an agent, what it orders, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.orders: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.owners = SimpleNamespace(state="running", attempt=0, notices=[])
        self.clock = StillClock()
        spool: Any = SimpleNamespace(directory=str(folder), resumed=lambda attempt: None)
        uploader: Any = SimpleNamespace(has_spoken=True, tell=self.orders.append)
        self.card = Card(spool, Config(), uploader, cast(Any, self.owners), self.clock, self.said.append)
        self.card.begin({"kind": "local"})

    def tick(self, after_s: float = 0.0) -> int:
        """Returns how many orders there were so far."""
        self.clock.now += after_s
        self.card.tick(self.clock.now, lambda: {"now": {}, "errors": []}, is_busy=False)
        return len(self.orders)


def end(scene: Scene) -> None:
    job: Any = SimpleNamespace(id="0.model.1", item=None, all_sent=1, all_copied=0)
    scene.card.ended(job, "FAILED", "no reason")


def test_it_is_written_for_news_now_and_then_and_when_the_state_changes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.tick() == 1
    assert scene.tick(CARD_REFRESH_S) == 1, "nothing has happened"
    end(scene)
    assert scene.tick() == 2
    end(scene)
    assert scene.tick() == 2, "that was just now"
    assert scene.tick(CARD_REFRESH_S) == 3
    scene.owners.notices.append("The store refuses")
    assert scene.tick(CARD_REFRESH_S) == 4
    assert scene.tick(CARD_BEAT_S) == 5
    scene.owners.state = "ended"
    assert scene.tick() == 6


def test_the_agent_waits_for_the_last_one_but_not_for_ever(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.owners.state = "ended"
    scene.tick()
    assert not scene.card.is_done(scene.clock.now)
    scene.card.on_written({"state": "ended"})
    assert scene.card.is_done(scene.clock.now)
    end(scene)
    assert not scene.card.is_done(scene.clock.now)
    assert scene.card.is_done(scene.clock.now + CARD_END_S)


def test_a_bug_of_the_card_ends_the_card_and_nothing_else(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    job: Any = SimpleNamespace()
    scene.card.saved(job, job)
    scene.card.saved(job, job)
    (said,) = scene.said
    assert said.startswith("The card ends here, by a bug of async_ckpt: AttributeError")
    assert scene.tick(CARD_BEAT_S) == 0
    assert scene.card.is_done(scene.clock.now)

    other = Scene(tmp_path)
    other.card.tick(0.0, lambda: {"now": 1 / 0}, is_busy=True)
    assert "ZeroDivisionError" in other.said[0]


def test_a_full_disk_leaves_gaps_in_the_card(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "gone")
    end(scene)
    assert scene.said == ["The card will lack something: No such file or directory"]
    assert scene.tick() == 1

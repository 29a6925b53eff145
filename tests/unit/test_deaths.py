"""Who is blamed for the deaths of uploaders and agents, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from async_ckpt.agent.deaths import Deaths
from async_ckpt.agent.queue import Queue
from async_ckpt.config import DEATHS_OF_AGENT, DEATHS_OF_UPLOADER, DEATHS_TO_SUSPECT, Config
from async_ckpt.manifest import FileEntry
from async_ckpt.spool.journal import ADMITTED, COMMITTED, FAILED, UPLOADED, Journal, part_stored, parts_begun
from async_ckpt.spool.records import Admitted
from async_ckpt.stores.base import Stored


class Scene:
    """A queue of checkpoints 0…, with what an agent does about uploads and writes into its journal."""

    def __init__(self, folder: Path, count: int, *, is_own: bool = True) -> None:
        self.journal, self.queue = Journal(str(folder / "journal")), Queue(2)
        self.failed: dict[str, str] = {}
        self.now = 0.0
        self.deaths = Deaths(self.queue, self.journal, Config(), "agent.log", is_own=is_own)
        for number in range(count):
            self.queue.add(f"0.c.{number}", (0, number), 1000)
            if why := self.deaths.recovered(f"0.c.{number}"):
                self.fail(f"0.c.{number}", why)

    def store_part(self, identity: str, number: int) -> None:
        """The store has one more part of it."""
        if number == 1:
            self.journal.note({"id": identity, **parts_begun("weights", "upload", 1)})
        self.journal.note({"id": identity, **part_stored("weights", number, Stored([1], (), "etag"))})

    def fail(self, identity: str, why: str) -> None:
        self.failed[identity] = why
        self.queue.end(identity, FAILED, why)

    def begin(self) -> list[str]:
        """What is taken in hand now."""
        self.now += 100.0
        self.queue.resume_due(self.now)
        taken = [action.ids[0] for action in self.queue.next_actions() if action.kind == "upload"]
        for identity in taken:
            self.deaths.taken(identity)
        return taken

    def die(self) -> None:
        for identity, why in list(self.deaths.died(self.queue.restart(), self.now)):
            self.fail(identity, why)


def test_the_one_that_kills_is_found_and_fails_while_the_others_are_uploaded(tmp_path: Path) -> None:
    scene, uploaded = Scene(tmp_path, 5), []
    for _ in range(100):
        taken = scene.begin()
        if not taken:
            break
        if "0.c.1" in taken:
            scene.die()
        else:
            for identity in taken:
                scene.queue.end(identity, COMMITTED)
                uploaded.append(identity)
    assert list(scene.failed) == ["0.c.1"]
    assert f"{DEATHS_OF_UPLOADER} times in a row" in scene.failed["0.c.1"]
    assert sorted(uploaded) == ["0.c.0", "0.c.2", "0.c.3", "0.c.4"]


def test_a_suspect_is_alone_and_last(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 4)
    for _ in range(DEATHS_TO_SUSPECT):
        assert scene.begin() == ["0.c.0", "0.c.1"]
        scene.die()
    assert scene.begin() == ["0.c.2", "0.c.3"]
    assert scene.begin() == []
    for identity in ("0.c.2", "0.c.3"):
        scene.queue.uploaded(identity)
    assert [action.ids for action in scene.queue.next_actions()] == [("0.c.2", "0.c.3")], "they do not wait for it"
    for identity in ("0.c.2", "0.c.3"):
        scene.queue.end(identity, COMMITTED)
    assert scene.begin() == ["0.c.0"]
    assert scene.begin() == []
    scene.queue.uploaded("0.c.0")
    assert not scene.queue.jobs["0.c.0"].is_suspect


def test_whose_upload_gets_on_is_not_blamed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1)
    for number in range(3 * DEATHS_OF_UPLOADER):
        assert scene.begin() == ["0.c.0"]
        scene.store_part("0.c.0", number + 1)
        scene.die()
    assert not scene.failed


def test_a_commit_that_kills_is_blamed_and_the_next_agent_knows(tmp_path: Path) -> None:
    """Also where a file of it may be saved again unchanged, of which the journal keeps more."""
    scene = Scene(tmp_path, 2)
    assert scene.begin() == ["0.c.0", "0.c.1"]
    job = scene.queue.jobs["0.c.0"]
    job.item = cast(Admitted, SimpleNamespace(entries={"weights": FileEntry("weights", 1000, 0o644)}))
    scene.journal.note({"id": "0.c.0", "file": "weights", "crc32": [1], "inode": [1, 2, 1000, 3, 4]})
    for identity in ("0.c.0", "0.c.1"):
        scene.journal.note({"id": identity, "state": UPLOADED})
        scene.queue.uploaded(identity)
    for _ in range(DEATHS_TO_SUSPECT):
        assert scene.queue.next_actions()[0].ids == ("0.c.0", "0.c.1")
        scene.die()
    assert scene.queue.next_actions()[0].ids == ("0.c.1",)
    assert Scene(tmp_path, 1).queue.jobs["0.c.0"].deaths == DEATHS_TO_SUSPECT


def test_between_its_tries_lie_longer_and_longer_pauses(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1)
    for _ in range(DEATHS_TO_SUSPECT):
        scene.begin()
        scene.die()
    pauses = []
    while not scene.failed:
        begun = scene.now
        while not (taken := scene.queue.next_actions()):
            scene.now += 0.5
            scene.queue.resume_due(scene.now)
        assert taken
        pauses.append(scene.now - begun)
        scene.deaths.taken("0.c.0")
        scene.die()
    assert pauses == [2.0, 4.0, 8.0]


@pytest.mark.parametrize(("is_own", "most"), [(True, DEATHS_OF_AGENT), (False, DEATHS_TO_SUSPECT)])
def test_what_agents_died_with_is_known_by_the_next_one(tmp_path: Path, is_own: bool, most: int) -> None:
    """The journal tells; in the task's own process less is risked."""
    for deaths in range(most):
        scene = Scene(tmp_path, 1, is_own=is_own)
        assert scene.queue.jobs["0.c.0"].deaths == deaths
        assert scene.begin() == ["0.c.0"]
    assert list(Scene(tmp_path, 1, is_own=is_own).failed) == ["0.c.0"]


@pytest.mark.parametrize(
    "line", [{"file": "x", "crc32": [1]}, {"state": FAILED, "why": "no"}, {"state": ADMITTED}, {"tries": 0}]
)
def test_an_agent_that_died_after_that_had_it_in_hand_no_more(tmp_path: Path, line: dict[str, Any]) -> None:
    scene = Scene(tmp_path, 1)
    scene.begin()
    scene.journal.note({"id": "0.c.0", **line})
    assert Scene(tmp_path, 1).queue.jobs["0.c.0"].deaths == 0


def test_what_is_put_down_is_not_blamed_when_the_agent_dies(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1)
    scene.begin()
    scene.deaths.put_down("0.c.0")
    assert Scene(tmp_path, 1).queue.jobs["0.c.0"].deaths == 0

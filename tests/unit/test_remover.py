"""Removing snapshots takes a file system seconds: the agent goes on meanwhile, and hears of what cannot be removed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt.agent import remover
from async_ckpt.agent.remover import Remover
from async_ckpt.capture.base import remove_snapshot
from async_ckpt.capture.moving import capture_by_move
from async_ckpt.config import Config
from async_ckpt.manifest import Manifest
from async_ckpt.spool.spool import Spool

from ..support.agents import TASK, wait_until
from .test_spool import STORE, admit, reference


class Disk:
    """Removes as the disk does, once it is ``free``; ``broken`` snapshots it cannot remove."""

    def __init__(self) -> None:
        self.free, self.begun = threading.Event(), threading.Event()
        self.broken: set[str] = set()

    def remove(self, target: str) -> None:
        self.begun.set()
        assert self.free.wait(60)
        if target in self.broken:
            raise OSError(5, "Input/output error", target)
        remove_snapshot(target)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(remover, "remove_snapshot", disk.remove)
    yield disk
    disk.free.set()


def test_nobody_waits_for_a_removal_and_the_record_goes_last(tmp_path: Path, disk: Disk) -> None:
    spool = Spool.create(str(tmp_path / "root"), TASK, STORE)
    items = [admit(spool, version) for version in range(3)]
    idle, errors = threading.Event(), list[str]()
    removing = Remover(spool, idle.set, errors.append)
    for item in items:
        removing.remove(item)
    assert disk.begun.wait(60)
    assert not removing.idle
    assert len(spool.ready_ids()) == 3
    disk.free.set()
    assert idle.wait(60)
    assert removing.idle
    assert spool.ready_ids() == os.listdir(spool.path("data")) == errors == []
    removing.stop()


def test_what_cannot_be_removed_is_reported_keeps_its_record_and_holds_up_nothing(tmp_path: Path, disk: Disk) -> None:
    spool = Spool.create(str(tmp_path / "root"), TASK, STORE)
    items = [admit(spool, version) for version in range(2)]
    disk.broken.add(items[0].data)
    disk.free.set()
    errors: list[str] = []
    removing = Remover(spool, lambda: None, errors.append)
    for item in items:
        removing.remove(item)
    wait_until(lambda: removing.idle, "all is tried")
    assert spool.ready_ids() == [items[0].id]
    (error,) = errors
    assert items[0].data in error
    assert "Input/output error" in error
    removing.stop()


@pytest.mark.parametrize("taken", [False, True])
def test_what_was_moved_and_is_lost_is_put_back_and_what_is_in_the_store_is_not(tmp_path: Path, taken: bool) -> None:
    spool = Spool.create(str(tmp_path / "root"), TASK, STORE)
    paths = [tmp_path / "out" / name for name in ("lost", "stored")]
    errors: list[str] = []
    removing = Remover(spool, lambda: None, errors.append)
    for version, path in enumerate(paths):
        path.mkdir(parents=True)
        (path / "weights").write_text("all I have")
        data = spool.path("data", f"1-{path.name}")
        capture_by_move(str(path), data, Config())
        item = spool.admit(reference(version), Manifest(), data, str(path))
        if taken:
            path.mkdir()
            (path / "weights").write_text("new")
        removing.remove(item, lost=path.name == "lost")
    wait_until(lambda: removing.idle, "all is done")
    assert spool.ready_ids() == os.listdir(spool.path("data")) == []
    found = sorted(file.read_text() for file in (tmp_path / "out").glob("lost*/weights"))
    assert found == (["all I have", "new"] if taken else ["all I have"])
    assert [f"{paths[0]}.saved-" in error for error in errors] == ([True] if taken else [])
    assert paths[1].exists() == taken
    removing.stop()

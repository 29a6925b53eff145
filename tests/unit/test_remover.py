"""Removing snapshots takes a file system seconds: the agent goes on meanwhile, and hears of what cannot be removed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from async_ckpt.agent import remover
from async_ckpt.agent.remover import Remover
from async_ckpt.capture.snapshot import remove_snapshot
from async_ckpt.spool.spool import Spool
from harness.tasks.task import TASK, wait_until

from .test_spool import STORE, admit


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
    assert len(spool.records.ids()) == 3
    disk.free.set()
    assert idle.wait(60)
    assert removing.idle
    assert spool.records.ids() == os.listdir(spool.path("data")) == errors == []
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
    assert spool.records.ids() == [items[0].id]
    (error,) = errors
    assert items[0].data in error
    assert "Input/output error" in error
    removing.stop()

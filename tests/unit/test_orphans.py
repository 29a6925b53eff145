"""Spools and annexes that nobody looks after are found and removed; those of agents that live are not."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from async_ckpt import layout
from async_ckpt.capture.walk import ANNEX_PREFIX
from async_ckpt.config import Config
from async_ckpt.manifest import FileEntry, Manifest
from async_ckpt.spool import orphans, place
from async_ckpt.spool.spool import Spool
from async_ckpt.stores.base import StoreSpec
from harness.tasks.task import TASK

DAY_S = 86400.0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(place, "bases", lambda given, config: [str(tmp_path / "places")])
    monkeypatch.setattr(orphans, "local_mounts", lambda: [str(tmp_path)])
    (tmp_path / "places").mkdir()
    return Config()


def aged(path: str, days: float) -> None:
    then = time.time() - days * DAY_S
    for above, folders, names in os.walk(path):
        for name in [*folders, *names]:
            os.utime(os.path.join(above, name), (then, then), follow_symlinks=False)
        os.utime(above, (then, then))


def make(config: Config) -> Spool:
    root = place.places(None, config)[0][0]
    return Spool.create(root, TASK, StoreSpec("local", "/store-0"))


def find(config: Config, days: float = 7) -> list[orphans.Orphan]:
    return orphans.find(config, older_than_s=days * DAY_S)


def test_an_empty_spool_whose_agent_is_gone_is_found_when_it_is_old_and_removed(config: Config) -> None:
    spool = make(config)
    assert find(config) == []
    aged(spool.directory, 8)
    (found,) = find(config)
    assert (found.kind, found.where, found.unsent) == (orphans.SPOOL, spool.directory, 0)
    assert "its agent are gone" in found.why
    assert found.age_s == pytest.approx(8 * DAY_S, abs=600)
    assert orphans.remove(found)
    assert not os.path.exists(spool.directory)
    assert find(config) == []


def test_a_spool_that_an_agent_holds_is_none_and_is_not_removed(config: Config) -> None:
    spool = make(config)
    aged(spool.directory, 8)
    (found,) = find(config)
    fd = os.open(spool.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert find(config) == []
        assert not orphans.remove(found)
    finally:
        os.close(fd)
    assert os.path.exists(spool.directory)


def test_something_that_changed_of_late_makes_a_spool_young(config: Config) -> None:
    spool = make(config)
    aged(spool.directory, 8)
    os.utime(spool.path("spool.json"))
    assert find(config) == []


def test_an_annex_without_a_spool_is_found_and_one_with_its_spool_is_not(config: Config, tmp_path: Path) -> None:
    spool = make(config)
    annexes = tmp_path / f"{ANNEX_PREFIX}{os.getuid()}"
    inode = os.stat(spool.directory).st_ino
    own, other = (annexes / f"{os.path.basename(spool.directory)}-{number}" for number in (inode, inode + 1))
    for annex in (own, other):
        (annex / "7-abc").mkdir(parents=True)
        (annex / "7-abc" / "file").write_bytes(b"x" * 10_000)
    aged(str(annexes), 8)
    (found,) = find(config)
    assert (found.kind, found.where, found.unsent) == (orphans.ANNEX, str(other), 1)
    assert found.size >= 10_000
    assert orphans.remove(found)
    assert not other.exists()
    assert own.exists()


def test_a_spool_with_what_is_not_in_the_store_says_how_much(config: Config, tmp_path: Path) -> None:
    spool = make(config)
    manifest = Manifest([FileEntry("file", 3, 0o644)])
    for version in range(2):
        reference = layout.reference(
            TASK, name="model", version=version, url="/store-0", size=3, metadata={}, storage_format="files",
            latest=True,
        )  # fmt: skip
        spool.records.admit(reference, manifest, spool.path("data", f"{version}"), str(tmp_path / "saved"))
    aged(spool.directory, 8)
    (found,) = find(config)
    assert found.unsent == 2
    assert "2 checkpoints, or additions to their metadata, are not in the store" in found.why

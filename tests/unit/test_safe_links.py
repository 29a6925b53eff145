"""What a disk could not copy away in time is not only linked; and what need not be copied away is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.capture import safe_links
from async_ckpt.capture.copy_speed import CopySpeed
from async_ckpt.capture.habits import Habits
from async_ckpt.capture.safe_links import SafeLinks
from async_ckpt.manifest import COPY, LINK
from harness.tasks.task import Task

KIB = 1 << 10
SIZE = 100 * KIB


def habits(folder: Path) -> Habits:
    return Habits(str(folder / "habits"), str(folder / "work"), "Flow/train")


def test_files_that_are_others_each_time_are_known_after_a_few(tmp_path: Path) -> None:
    mine = habits(tmp_path)
    for number in range(3):
        assert not mine.is_new_each_time("/out/step-9/w")
        mine.saw(f"/out/step-{number}/w", (1, number))
        mine.saw(f"/out/step-{number}/w", (1, number))
    assert mine.is_new_each_time("/out/step-9/w")
    assert habits(tmp_path).is_new_each_time("/out/step-9/w")
    assert not mine.is_new_each_time("/out/step-9/other")


def test_one_that_is_rewritten_after_all_is_known_for_that_from_then_on(tmp_path: Path) -> None:
    mine, others = habits(tmp_path), habits(tmp_path)
    for number in range(5):
        mine.saw("/out/w", (1, number))
    assert others.is_new_each_time("/out/w")
    mine.learn("/out/w")
    for known in mine, others, habits(tmp_path):
        assert known.is_rewritten("/out/w")
        assert not known.is_new_each_time("/out/w")
        known.saw("/out/w", (1, 7))
        assert known.is_rewritten("/out/w")


class Trainer:
    """On a disk that can copy one file away in time, and was seen to."""

    def __init__(self, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safe_links, "_ALWAYS_BYTES", 0)
        rate = 1.5 * SIZE / safe_links.BREAK_TIME_S / 0.6
        os.makedirs(task.root)
        Path(task.root, "pace").write_text(json.dumps([rate, SIZE]))
        self.said: list[str] = []
        self.task, self.checkpointer = task, task.start(report=self.said.append)

    def save(self, number: int, *, folder: str = "out", strategy: str = "auto") -> list[str]:
        """Write two files, to new ones; how they were captured."""
        out = self.task.work / folder
        out.mkdir(exist_ok=True)
        for name in ("left", "right"):
            (out / f"{name}.new").write_bytes(b"%d" % number * SIZE)
            (out / f"{name}.new").rename(out / name)
        saved = self.checkpointer.save(out, snapshot=strategy)
        item = self.checkpointer.spool.records.read(f"0.{saved.name}.{saved.version_id}")
        assert item is not None
        return [entry.how for entry in item.manifest.files]


def test_ranks_of_one_machine_share_what_its_disk_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_links, "can_clone", lambda folder: False)
    for ranks, size in ("1", 4 << 30), ("4", 1 << 30), ("none", 4 << 30):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        limit = SafeLinks(habits(tmp_path), CopySpeed(), str(tmp_path), str(tmp_path), safe_links.ranks_here())
        assert limit.may_link("w", size)
        assert not limit.may_link("w", size)


@pytest.mark.parametrize("strategy", ["auto", "hardlink"])
def test_beyond_what_can_be_copied_away_in_time_a_save_copies_and_says_so_once(
    strategy: str, task: Task, monkeypatch: pytest.MonkeyPatch, on_filesystem: Callable[[str], Path]
) -> None:
    task.move_to(on_filesystem("tmpfs"))
    gate = task.gate()
    gate.hold("left")
    trainer = Trainer(task, monkeypatch)
    assert trainer.save(1, strategy=strategy) == [LINK, COPY]
    assert trainer.save(2, strategy=strategy) == [LINK, COPY]
    (line,) = [line for line in trainer.said if "were copied before save() returned" in line]
    assert str(task.work / "out") in line
    assert "xfs" in line
    gate.open_all()
    trainer.checkpointer.flush(60)


def test_what_is_a_new_file_each_time_is_only_linked(
    task: Task, monkeypatch: pytest.MonkeyPatch, on_filesystem: Callable[[str], Path]
) -> None:
    task.move_to(on_filesystem("tmpfs"))
    gate = task.gate()
    gate.hold("left")
    trainer = Trainer(task, monkeypatch)
    kept = trainer.checkpointer.spool.habits()
    for number in range(3):
        for name in ("left", "right"):
            kept.saw(str(task.work / f"checkpoint-{number}" / name), (0, number))
    assert trainer.save(1, folder="checkpoint-17") == [LINK, LINK]
    assert trainer.save(1, folder="other") == [LINK, COPY]
    for name in ("left", "right"):
        kept.learn_new(str(task.work / "said" / name))
    assert trainer.save(1, folder="said") == [LINK, LINK]
    gate.open_all()
    trainer.checkpointer.flush(60)


def test_where_copies_take_no_time_everything_is_linked(
    task: Task, monkeypatch: pytest.MonkeyPatch, on_filesystem: Callable[[str], Path]
) -> None:
    task.move_to(on_filesystem("xfs"))
    gate = task.gate()
    gate.hold("left")
    trainer = Trainer(task, monkeypatch)
    assert trainer.save(1) == [LINK, LINK]
    assert trainer.said == []
    gate.open_all()
    trainer.checkpointer.flush(60)

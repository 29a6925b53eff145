"""What a watch captures before it is known whether it is finished."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from async_ckpt.config import Config
from async_ckpt.watch.early_capture import EarlyCaptures
from async_ckpt.watch.entry import Entry
from async_ckpt.watch.tree import read_tree
from harness.common import log_lines


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., EarlyCaptures]:
    numbers = itertools.count()
    (tmp_path / "out").mkdir()
    (tmp_path / "spool").mkdir()

    def make(**settings: int) -> EarlyCaptures:
        config = Config(min_free_bytes=0, min_free_inodes=0, **settings)
        return EarlyCaptures(str(tmp_path / "out"), lambda path: str(tmp_path / "spool" / f"{next(numbers)}"), config)

    return make


def write(out: Path, name: str, *files: str) -> Entry:
    for file in files:
        (out / name).mkdir(exist_ok=True)
        (out / name / file).write_text(file * 1000)
    return Entry(name, read_tree(str(out / name)), 0.0, 1)


def test_links_are_made_which_take_no_room_and_what_is_written_to_them_is_noticed(
    make: Callable[..., EarlyCaptures], tmp_path: Path
) -> None:
    captures = make()
    captured = captures.capture(write(tmp_path / "out", "checkpoint-1", "model", "log"))
    assert captured is not None
    assert not captured.is_copy
    for name in ("model", "log"):
        assert os.path.samefile(tmp_path / "out" / "checkpoint-1" / name, Path(captured.path, name))
    assert captured.is_intact()
    with open(tmp_path / "out" / "checkpoint-1" / "log", "a") as log:
        log.write("more")
    assert not captured.is_intact()
    assert captured.is_continued()
    captures.drop_all_but(())
    assert os.listdir(tmp_path / "spool") == []
    assert sorted(os.listdir(tmp_path / "out" / "checkpoint-1")) == ["log", "model"]


def test_what_has_a_name_that_is_used_again_is_copied_as_long_as_there_is_room(
    make: Callable[..., EarlyCaptures], tmp_path: Path
) -> None:
    captures = make(watch_copy_bytes=9000)
    best, last = (captures.capture(write(tmp_path / "out", name, "model")) for name in ("best", "last"))
    assert best is not None
    assert last is not None
    assert (best.is_copy, last.is_copy) == (True, False)
    (tmp_path / "out" / "best" / "model").write_text("anew")
    assert best.is_intact()
    assert Path(best.path, "model").read_text() == "model" * 1000
    assert not best.is_continued()


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"watch_hold_files": 1}, "it has more than 1 files"), ({"watch_held": 0}, "0 others wait")],
    ids=["files", "captures"],
)
def test_beyond_a_limit_nothing_is_captured_until_it_is_finished_and_the_log_says_so_once(
    make: Callable[..., EarlyCaptures], tmp_path: Path, settings: dict[str, int], why: str
) -> None:
    captures, entry = make(**settings), write(tmp_path / "out", "checkpoint-1", "model", "log")
    with log_lines.collected() as lines:
        assert captures.capture(entry) is captures.capture(entry) is None
    assert lines == [
        f"watch: checkpoint-1 cannot be captured before it counts as finished: {why}. If it is removed or written anew "
        "before that, it is not saved"
    ]
    assert captures.capture(entry, finished=True) is not None
    assert len(os.listdir(tmp_path / "spool")) == 1

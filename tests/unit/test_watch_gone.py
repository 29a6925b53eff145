"""What is gone before it counted as finished: looks and a clock go in, whether it was a checkpoint comes out."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import pytest

from async_ckpt.config import WATCH_STILL_S as STILL_S
from async_ckpt.watch.entry import Look
from async_ckpt.watch.gone import Gone, Verdict
from async_ckpt.watch.recogniser import Recogniser
from async_ckpt.watch.tree import Fact, Tree

SETTLE_S = 30.0


@dataclass
class Captured:
    tree: Tree
    is_copy: bool = False
    path: str = ""
    grows: bool = False

    def is_continued(self) -> bool:
        return self.grows

    def add_trackers(self) -> None:
        pass

    def is_intact(self) -> bool:
        return True


@dataclass
class Scene:
    """A trainer, and a watch that captures what stands still and saves nothing else."""

    now: float = 1000.0
    there: dict[str, Look] = field(default_factory=dict)
    inode: int = 0

    def __post_init__(self) -> None:
        self.recogniser = Recogniser(SETTLE_S, needs_marker=False, clock=lambda: self.now)

    def write(self, path: str, *, in_place: bool = False, **sizes: int) -> None:
        """Files by name (``file`` alone is the entry itself) and their sizes, in new inodes unless ``in_place``."""
        before = self.there[path].tree if in_place else {}
        tree = Tree()
        for given, size in sizes.items():
            name = "" if given == "file" else given
            self.inode += 1
            inode = before[name].inode if name in before else self.inode
            tree[name] = Fact(stat.S_IFREG, 1, inode, size, int(self.now * 1e9))
        self.there[path] = Look(tree)

    def look(self, after: float = 0.0, *, copies: bool = False) -> list[str]:
        """Let time pass, look, and capture what stands still; returns what is captured newly."""
        self.now += after * 1.001
        self.recogniser.observe(self.there)
        captured = self.recogniser.to_capture()
        for entry in captured:
            entry.captured = Captured(entry.tree, copies)
        return [entry.path for entry in captured]

    def stand(self, *, copies: bool = False) -> list[str]:
        """Look until what is there has stood still."""
        return self.look(copies=copies) + self.look(STILL_S, copies=copies)

    def verdict(self, *, last: bool = False) -> Verdict:
        (gone,) = self.recogniser.gone
        return self.recogniser.judge(gone, last=last)


def test_what_stands_still_for_a_moment_is_captured_and_again_only_when_it_changes() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    assert scene.look() == scene.look(STILL_S / 2) == []
    assert scene.recogniser.next_capture_s() == pytest.approx(STILL_S / 2, rel=0.01)
    assert scene.look(STILL_S / 2) == ["checkpoint-1"]
    assert scene.recogniser.next_capture_s() == float("inf")
    assert scene.look(100) == []
    scene.write("checkpoint-1", in_place=True, a=5, b=3)
    assert scene.look() == []
    assert scene.recogniser.captures() == [], "it was too early"
    assert scene.look(STILL_S) == [], "and it must be still for longer"
    assert scene.look(STILL_S) == ["checkpoint-1"]


def test_what_is_open_for_writing_or_empty_is_not_captured() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    scene.write("checkpoint-2", a=0)
    scene.look()
    scene.recogniser.note_open({"checkpoint-1"})
    assert scene.look(STILL_S) == []
    assert scene.recogniser.next_capture_s() <= STILL_S, "it may be closed at any moment"
    scene.recogniser.note_open(())
    assert scene.look(STILL_S) == ["checkpoint-1"]


def test_the_oldest_of_a_trainer_that_keeps_two_was_a_checkpoint_also_where_it_was_the_first_one_ever() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5, b=3)
    scene.stand()
    scene.write("checkpoint-2", a=1, b=1)
    scene.look()
    del scene.there["checkpoint-1"]
    scene.look(0.05)
    assert scene.verdict().whole is None, "nobody knows yet what a whole one has"
    scene.look(STILL_S)
    assert scene.verdict().whole is None, "this one may be half as well"
    scene.write("checkpoint-3", a=1)
    scene.look()
    assert scene.verdict() == (True, "removed after the next one was begun")


@pytest.mark.parametrize(
    "names",
    [
        ["3df41ef5b8d7d2ff1c0a", "ca5c3c1b2f0d9e8a7b6c", "0f1e2d3c4b5a69788796"],
        [f"{part}-4f89-11d3-9a0c-0305e82c3301" for part in ("3f2504e0", "9b2d1e44", "ffffffff")],
        ["shard-7Kx92mQp3.bin", "shard-a8Xk31Zz9.bin", "shard-Q1w2E3r4.bin"],
    ],
    ids=["digests", "UUIDs", "random"],
)
def test_names_of_files_that_nobody_has_chosen_are_no_files_that_others_lack(names: list[str]) -> None:
    """Orbax calls its files by digests."""
    scene = Scene()
    for number, name in enumerate(names):
        scene.write(f"checkpoint-{number}", **{f"d/{name}": 5, "meta": 3})
        scene.stand()
    del scene.there["checkpoint-0"]
    scene.look(0.05)
    assert scene.verdict() == (True, "removed after the next one was begun")


def test_a_file_with_the_name_of_something_unfinished_is_none_that_others_lack() -> None:
    scene = Scene()
    for number in (1, 2, 3):
        scene.write(f"checkpoint-{number}", **({"model": 5, "model.tmp": 2} if number == 2 else {"model": 5}))
        scene.stand()
    del scene.there["checkpoint-1"]
    scene.look()
    assert scene.verdict() == (True, "removed after the next one was begun")


def test_one_that_goes_bit_by_bit_is_captured_as_it_was() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5, b=3)
    scene.stand()
    for number in (2, 3):
        scene.write(f"checkpoint-{number}", a=5, b=3)
        scene.stand()
    whole = scene.there["checkpoint-1"].tree
    scene.there["checkpoint-1"] = Look(Tree({"b": whole["b"]}))
    scene.look(0.05)
    assert scene.recogniser.gone == []
    del scene.there["checkpoint-1"]
    scene.look(0.05)
    assert scene.recogniser.gone[0].tree == whole
    assert scene.verdict().whole


def test_one_that_lacks_what_the_next_one_has_was_half() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    scene.stand()
    scene.write("checkpoint-2", a=5, b=3)
    scene.stand()
    del scene.there["checkpoint-1"]
    scene.look()
    assert scene.verdict().whole is None
    assert scene.verdict(last=True) == (False, "it lacked b, which another one has")


@pytest.mark.parametrize(("size", "whole"), [(100, True), (95, True), (80, False)])
def test_the_newest_that_is_removed_was_one_only_if_it_is_as_large_as_the_one_before(size: int, whole: bool) -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=100, log=1)
    scene.stand()
    entry = scene.recogniser.entries["checkpoint-1"]
    scene.recogniser.note_saved(entry, entry.tree)
    scene.write("checkpoint-2", a=size, log=2)
    scene.stand()
    del scene.there["checkpoint-2"]
    scene.look()
    assert (scene.verdict().whole, scene.verdict(last=True).whole) == (whole or None, whole)


def test_the_only_one_that_is_removed_with_nothing_after_it_is_no_checkpoint() -> None:
    scene = Scene()
    scene.write("checkpoint-1", file=5)
    scene.stand()
    del scene.there["checkpoint-1"]
    scene.look()
    assert scene.verdict().whole is None
    assert scene.verdict(last=True) == (False, "nothing tells whether it was finished")


def test_a_trainer_that_removes_the_old_one_before_it_writes_the_next() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=100)
    scene.stand()
    del scene.there["checkpoint-1"]
    scene.look()
    scene.write("checkpoint-2", a=40)
    scene.look(1)
    assert scene.verdict().whole is None
    scene.write("checkpoint-2", in_place=True, a=100)
    scene.stand()
    assert scene.verdict().whole is None, "this one may be half as well"
    del scene.there["checkpoint-2"]
    scene.write("checkpoint-3", a=1)
    scene.look()
    first, second = map(scene.recogniser.judge, scene.recogniser.gone)
    assert first == (True, "removed, and as large as another one")
    assert second.whole is None


def test_a_half_that_is_tried_again_is_none_however_the_writer_pauses() -> None:
    scene = Scene()
    scene.write("checkpoint-1", model=5)
    scene.stand()
    del scene.there["checkpoint-1"]
    scene.look()
    scene.write("checkpoint-1", model=5)
    assert scene.stand() == ["checkpoint-1"]
    assert scene.verdict().whole is None, "so far it looks the same"
    scene.write("checkpoint-1", in_place=True, model=5, optimizer=9)
    scene.look()
    assert scene.look(1) == ["checkpoint-1"]
    scene.write("checkpoint-2", model=5)
    scene.look()
    assert scene.verdict(last=True) == (False, "it lacked optimizer, which another one has")


@pytest.mark.parametrize("copies", [False, True], ids=["links", "copies"])
@pytest.mark.parametrize("size", [100, 60])
def test_a_name_that_is_used_again_for_a_new_file_is_compared_with_what_comes(copies: bool, size: int) -> None:
    scene = Scene()
    scene.write("last.ckpt", file=size)
    scene.stand(copies=copies)
    scene.write("last.ckpt", file=100)
    scene.look()
    assert scene.verdict().whole is None, "the new one is being written"
    scene.look(STILL_S)
    scene.write("last.ckpt", file=1)
    scene.look()
    first, second = scene.recogniser.gone
    assert scene.recogniser.judge(first).whole is (True if size == 100 else None)
    assert scene.recogniser.entries["last.ckpt"].order > second.order > first.order


def test_one_that_is_written_anew_in_place_is_there_only_where_it_was_copied() -> None:
    scene = Scene()
    scene.write("last.ckpt", file=100)
    scene.stand()
    scene.write("last.ckpt", in_place=True, file=99)
    scene.look()
    assert scene.recogniser.gone == scene.recogniser.captures() == []
    scene.look(2 * STILL_S, copies=True)
    scene.write("last.ckpt", in_place=True, file=98)
    scene.stand(copies=True)
    assert scene.look(STILL_S, copies=True) == ["last.ckpt"]
    scene.write("last.ckpt", in_place=True, file=97)
    scene.look()
    first, _ = scene.recogniser.gone
    assert scene.recogniser.judge(first) == (True, "written anew")
    scene.recogniser.note_gone_saved(first)
    assert scene.look(STILL_S) == ["last.ckpt"], "a whole one was captured, and not too early"


def test_a_copy_of_what_goes_on_growing_is_no_checkpoint() -> None:
    scene = Scene()
    scene.write("last.ckpt", file=10)
    scene.stand(copies=True)
    captured = scene.recogniser.entries["last.ckpt"].captured
    assert isinstance(captured, Captured)
    captured.grows = True
    scene.write("last.ckpt", in_place=True, file=100)
    scene.look()
    assert scene.recogniser.gone == scene.recogniser.captures() == []


def test_one_that_is_renamed_within_the_directory_is_followed_and_not_gone() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    scene.stand()
    scene.there = {"checkpoint-best": scene.there["checkpoint-1"]}
    assert scene.look(1) == []
    assert scene.recogniser.gone == []
    assert scene.recogniser.entries["checkpoint-best"].captured is not None


def test_what_was_saved_as_it_is_does_not_depart() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    scene.stand()
    entry = scene.recogniser.entries["checkpoint-1"]
    scene.recogniser.note_saved(entry, entry.tree)
    del scene.there["checkpoint-1"]
    scene.look()
    assert scene.recogniser.gone == []


def test_one_begun_before_what_is_saved_is_not_the_newest() -> None:
    scene = Scene()
    scene.write("checkpoint-1", a=5)
    scene.stand()
    scene.write("checkpoint-2", a=5)
    scene.stand()
    entry = scene.recogniser.entries["checkpoint-2"]
    scene.recogniser.note_saved(entry, entry.tree)
    del scene.there["checkpoint-1"]
    scene.look()
    gone: Gone = scene.recogniser.gone[0]
    assert scene.verdict().whole
    assert not scene.recogniser.is_newest(gone)


def test_where_all_go_at_once_each_is_compared_with_the_others() -> None:
    scene = Scene()
    for number in (1, 2):
        scene.write(f"checkpoint-{number}", a=100)
        scene.stand()
    scene.there = {}
    scene.look()
    first, second = scene.recogniser.gone
    assert scene.recogniser.judge(second).whole is None
    assert scene.recogniser.judge(first).whole is None
    assert scene.recogniser.judge(first, last=True) == (True, "removed after the next one was begun")
    scene.recogniser.note_gone_saved(first)
    assert scene.recogniser.judge(second) == (True, "removed, and as large as another one")

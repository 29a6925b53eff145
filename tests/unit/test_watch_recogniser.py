"""Which entries of a watched directory count as finished: looks and a clock go in, decisions come out."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from async_ckpt.watch.entry import Entry, Look
from async_ckpt.watch.recogniser import UNSURE_FACTOR, Recogniser
from async_ckpt.watch.tree import Fact, Tree
from harness.common import log_lines

SETTLE_S = 10.0
MARKER = Fact(stat.S_IFREG, 1, 77, 0, 1)


def tree(*names: str, size: int = 5, mtime_ns: int = 1) -> Tree:
    """A directory with these files, each an inode of its own."""
    return Tree({name: Fact(stat.S_IFREG, 1, hash(name), size, mtime_ns) for name in names})


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with log_lines.collected() as collected:
        yield collected


class Scene:
    """A recogniser whose time and looks a test makes; what is finished is saved at once.

    ``first``: the trainer has not written a checkpoint before.
    """

    def __init__(self, *, needs_marker: bool = False, first: bool = False) -> None:
        self.now = 1000.0
        self.recogniser = Recogniser(SETTLE_S, needs_marker=needs_marker, clock=lambda: self.now)
        self.there: dict[str, Look] = {}
        for kind in () if first else ("checkpoint-0", "last"):
            self.recogniser.note_saved(Entry(kind, Tree(), 0.0, 0), Tree())

    def look(self, *, after: float = 0.0, last: bool = False, old: tuple[str, ...] = ()) -> list[str]:
        """Let time pass, look once, and save what is finished; returns its paths."""
        self.now += after
        self.recogniser.observe(self.there, old=old)
        self.there = {path: look._replace(renamed=False) for path, look in self.there.items()}
        saved = []
        for entry, _ in self.recogniser.finished(last=last):
            self.recogniser.note_saved(entry, entry.tree)
            saved.append(entry.path)
        return saved

    def write(self, path: str, *names: str, size: int = 5, mtime_ns: int = 1, **facts: bool) -> None:
        marker = MARKER if facts.get("marked") else None
        self.there[path] = Look(tree(*names, size=size, mtime_ns=mtime_ns), marker, facts.get("renamed", False))


def test_what_is_quiet_for_the_settle_time_is_finished_once_and_not_a_moment_earlier() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    assert scene.look() == []
    assert scene.look(after=SETTLE_S - 0.1) == []
    assert scene.look(after=0.1) == ["checkpoint-1"]
    assert scene.look(after=100 * SETTLE_S) == []


@pytest.mark.parametrize(
    "change",
    [{"names": ("a", "b")}, {"size": 6}, {"mtime_ns": 2}, {"names": ("b",)}],
    ids=["a new name", "a size", "a time", "another inode"],
)
def test_every_kind_of_change_begins_the_quiet_time_anew(change: dict[str, object]) -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    scene.look()
    names = change.pop("names", ("a",))
    assert isinstance(names, tuple)
    scene.write("checkpoint-1", *names, **change)  # type: ignore[arg-type]
    assert scene.look(after=SETTLE_S - 1) == []
    assert scene.look(after=SETTLE_S - 0.1) == []
    assert scene.look(after=0.1) == ["checkpoint-1"]


def test_one_that_is_open_for_writing_is_not_finished_however_long_nothing_changes_and_not_at_once_when_closed(
    lines: list[str],
) -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    scene.look()
    for _ in range(5):
        scene.now += SETTLE_S
        scene.recogniser.note_open({"checkpoint-1"})
        assert scene.look() == []
    assert ["open for writing" in line for line in lines] == [True]
    scene.recogniser.note_open(())
    assert scene.look(after=SETTLE_S - 1) == [], "closed, and the next file not begun"
    assert scene.look(after=1) == ["checkpoint-1"]


def test_a_rename_from_another_name_finishes_it_at_once_unless_it_is_written_to_afterwards() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", renamed=True)
    assert scene.look() == ["checkpoint-1"]
    scene.write("checkpoint-2", "a", renamed=True)
    scene.recogniser.observe(scene.there)
    scene.write("checkpoint-2", "a", "b")
    assert scene.look() == []
    assert scene.look(after=SETTLE_S) == ["checkpoint-2"]


def test_a_rename_counts_not_while_a_file_is_open_for_writing() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", renamed=True)
    scene.recogniser.observe(scene.there)
    scene.recogniser.note_open({"checkpoint-1"})
    assert scene.look() == []
    scene.recogniser.note_open(())
    assert scene.look() == ["checkpoint-1"]


def test_with_a_marker_nothing_else_counts() -> None:
    scene = Scene(needs_marker=True)
    scene.write("checkpoint-1", "a", renamed=True)
    assert scene.look() == scene.look(after=1000 * SETTLE_S, last=True) == []
    assert [entry.path for entry in scene.recogniser.never_finished()] == ["checkpoint-1"]
    assert scene.recogniser.pending() == []
    scene.write("checkpoint-1", "a", "DONE", marked=True)
    scene.recogniser.observe(scene.there)
    assert scene.recogniser.entries["checkpoint-1"].must_be_closed == {(1, 77)}
    scene.recogniser.note_open({"checkpoint-1"})
    assert scene.look() == [], "the marker is still being written"
    scene.recogniser.note_open(())
    assert scene.look() == ["checkpoint-1"]


def test_one_that_is_written_anew_under_its_old_marker_must_be_quiet() -> None:
    scene = Scene(needs_marker=True)
    scene.write("last", "a", "DONE", marked=True)
    assert scene.look() == ["last"]
    scene.write("last", "a", "DONE", marked=True, mtime_ns=2)
    assert scene.look(after=500) == []
    assert scene.look(after=SETTLE_S) == ["last"]


def test_a_marker_that_is_older_than_something_in_it_counts_when_all_is_quiet_and_closed() -> None:
    scene = Scene(needs_marker=True)
    scene.write("last", "a", "b", marked=True, mtime_ns=2)
    assert scene.look() == []
    assert [entry.path for entry in scene.recogniser.pending()] == ["last"]
    assert len(scene.recogniser.entries["last"].must_be_closed) == 2, "not of the marker alone"
    assert scene.look(after=SETTLE_S - 0.1) == []
    assert scene.look(after=0.1) == ["last"]


def test_what_a_killed_attempt_left_counts_with_a_marker_that_is_as_new_and_with_no_older_one() -> None:
    scene = Scene(needs_marker=True)
    scene.write("half", "a", marked=True, mtime_ns=2)
    scene.write("whole", "a", marked=True)
    scene.recogniser.observe(scene.there, old=("half", "whole"))
    scene.recogniser.expect_leftovers(10)
    assert [entry.path for entry in scene.recogniser.pending()] == ["whole"]
    assert [entry.path for entry in scene.recogniser.never_finished()] == ["half"]
    assert scene.look() == ["whole"]
    assert scene.look(after=100 * SETTLE_S, last=True) == []
    scene.write("half", "a", marked=True, mtime_ns=3)
    assert scene.look() == []
    assert scene.look(after=SETTLE_S) == ["half"], "it was written to again"


def test_a_half_that_goes_quiet_for_too_long_is_followed_by_the_whole_and_from_then_on_all_wait_ten_times_as_long(
    lines: list[str],
) -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    scene.look()
    assert scene.look(after=2 * SETTLE_S) == ["checkpoint-1"], "nothing told that it was half"
    scene.write("checkpoint-1", "a", "b")
    assert scene.look(after=SETTLE_S) == []
    assert "grew again 30 s after" in lines[0]
    assert scene.look(after=UNSURE_FACTOR * SETTLE_S - 1) == []
    assert scene.look(after=1) == ["checkpoint-1"]
    assert scene.recogniser.is_newest(scene.recogniser.entries["checkpoint-1"])
    # A file, of which no name can be missing: it pauses as long as the directory did.
    scene.write("epoch.ckpt", "", size=1)
    scene.look()
    assert scene.look(after=3 * SETTLE_S) == []
    scene.write("epoch.ckpt", "", size=2)
    assert scene.look() == []
    assert scene.look(after=UNSURE_FACTOR * SETTLE_S) == ["epoch.ckpt"]


def test_a_directory_that_lacks_what_the_one_before_it_had_waits_ten_times_as_long_whatever_the_numbers() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "model-1-of-2", "model-2-of-2", "step1/optimizer")
    scene.look()
    assert scene.look(after=SETTLE_S) == ["checkpoint-1"]
    scene.write("checkpoint-20", "model-1-of-2", "step20/optimizer")
    scene.look()
    assert scene.look(after=5 * SETTLE_S) == []
    scene.write("checkpoint-20", "model-1-of-2", "model-2-of-2", "step20/optimizer")
    assert scene.look() == []
    assert scene.look(after=SETTLE_S) == ["checkpoint-20"]
    scene.write("checkpoint-30", "model-1-of-2")
    scene.look()
    assert scene.look(after=UNSURE_FACTOR * SETTLE_S - 1) == []
    assert scene.look(after=1) == ["checkpoint-30"], "the trainer writes fewer files from now on"


def test_the_first_directory_of_its_kind_waits_ten_times_as_long_as_more_files_may_come() -> None:
    scene = Scene(first=True)
    scene.write("checkpoint-1", "a")
    scene.look()
    assert scene.look(after=4 * SETTLE_S) == []
    scene.write("checkpoint-1", "a", "b")
    assert scene.look() == []
    assert scene.look(after=UNSURE_FACTOR * SETTLE_S - 1) == []
    assert scene.look(after=1) == ["checkpoint-1"]
    scene.write("checkpoint-2", "a", "b")
    scene.look()
    assert scene.look(after=SETTLE_S) == ["checkpoint-2"], "it is known which files there are"


def test_the_first_waits_no_longer_once_the_next_is_begun_or_the_trainer_has_ended_well() -> None:
    scene = Scene(first=True)
    scene.write("checkpoint-1", "a")
    scene.write("best", "a")
    scene.look()
    scene.write("checkpoint-2")
    assert scene.look(after=SETTLE_S) == [], "an empty directory is not begun"
    scene.write("checkpoint-2", "a")
    assert scene.look() == ["checkpoint-1"]
    assert scene.look(last=True) == ["best"]


def test_a_file_is_not_one_of_which_more_may_come() -> None:
    scene = Scene(first=True)
    scene.write("epoch=1.ckpt", "")
    scene.look()
    assert scene.look(after=SETTLE_S) == ["epoch=1.ckpt"]


def test_at_the_good_end_what_lacks_files_is_taken_when_it_is_quiet() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", "b")
    scene.look()
    scene.look(after=SETTLE_S)
    scene.write("checkpoint-2", "a")
    scene.look()
    assert scene.look(after=SETTLE_S - 1, last=True) == []
    assert scene.look(after=1, last=False) == []
    assert scene.look(last=True) == ["checkpoint-2"]


def test_one_that_is_being_removed_is_never_saved_again() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", "b", "c")
    scene.look()
    scene.look(after=SETTLE_S)
    scene.write("checkpoint-1", "b", "c")
    scene.look()
    scene.write("checkpoint-1", "c")
    assert scene.look(after=100 * SETTLE_S, last=True) == []
    assert scene.recogniser.pending() == []
    scene.write("checkpoint-1", "c", "d")
    scene.look()
    assert scene.look(after=UNSURE_FACTOR * SETTLE_S) == ["checkpoint-1"], "it was written anew"


def test_empty_directories_and_empty_files_are_only_begun() -> None:
    scene = Scene()
    scene.write("checkpoint-1")
    scene.there["checkpoint-2"] = Look(Tree({"folder": Fact(stat.S_IFDIR, 1, 1, 0, 0)}))
    scene.write("checkpoint-3", "a", size=0)
    scene.look()
    assert scene.look(after=100 * SETTLE_S) == []
    assert scene.look(last=True) == ["checkpoint-3"]


def test_what_comes_together_is_saved_in_the_order_in_which_it_was_written() -> None:
    scene = Scene()
    for number, mtime in ((10, 3), (9, 3), (8, 1), (11, 2)):
        scene.write(f"checkpoint-{number}", "a", mtime_ns=mtime)
    scene.look()
    assert scene.look(after=SETTLE_S) == [f"checkpoint-{number}" for number in (8, 11, 9, 10)]


def test_one_that_was_begun_first_and_is_finished_last_is_not_the_newest() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    scene.look()
    scene.write("checkpoint-2", "a", renamed=True)
    assert scene.look() == ["checkpoint-2"]
    first, second = (scene.recogniser.entries[f"checkpoint-{n}"] for n in (1, 2))
    assert not scene.recogniser.is_newest(first)
    assert scene.recogniser.is_newest(second)
    # Written anew after it was saved, as a last.ckpt is, it is the newest again.
    assert scene.look(after=SETTLE_S) == ["checkpoint-1"]
    scene.write("checkpoint-1", "a", mtime_ns=9)
    scene.look()
    assert scene.recogniser.is_newest(first)


def test_one_that_is_still_empty_was_begun_after_those_that_came_with_it() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", mtime_ns=5)
    scene.write("checkpoint-2")
    scene.look()
    scene.write("checkpoint-2", "a", mtime_ns=6, renamed=True)
    assert scene.look() == ["checkpoint-2"]
    assert not scene.recogniser.is_newest(scene.recogniser.entries["checkpoint-1"])


def test_one_that_is_renamed_after_it_was_saved_is_not_saved_again() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a")
    scene.look()
    assert scene.look(after=SETTLE_S) == ["checkpoint-1"]
    scene.there = {"checkpoint-best": scene.there["checkpoint-1"]}
    assert scene.look() == scene.look(after=100 * SETTLE_S) == []


def file(number: int, *, size: int = 5, mtime_ns: int) -> Look:
    """An entry that is a file: its inode's number, bytes and time."""
    return Look(Tree({"": Fact(stat.S_IFREG, 1, number, size, mtime_ns)}))


@pytest.mark.parametrize("names", [("ckpt.0", "ckpt.1", "ckpt.2"), ("ckpt.2", "ckpt.1", "ckpt.0")])
def test_a_trainer_that_renames_earlier_ones_to_names_that_are_there_has_each_saved_once_and_the_last_as_the_newest(
    names: tuple[str, ...],
) -> None:
    """Whichever of them is looked at first."""
    scene, saved = Scene(), []
    for number in range(1, 6):
        there = {f"ckpt.{back}": file(number - back, mtime_ns=10 * (number - back)) for back in range(min(number, 3))}
        scene.there = {name: there[name] for name in names if name in there}
        scene.look()
        saved += scene.look(after=SETTLE_S)
        newest = scene.recogniser.entries["ckpt.0"]
        assert all(newest.order > entry.order for entry in scene.recogniser.entries.values() if entry is not newest)
    assert saved == ["ckpt.0"] * 5


@pytest.mark.parametrize(
    "anew", [file(1, size=4, mtime_ns=30), file(3, size=9, mtime_ns=30)], ids=["in place", "as another file"]
)
def test_one_that_is_written_anew_before_it_was_saved_is_newer_than_what_was_begun_meanwhile(anew: Look) -> None:
    scene = Scene()
    scene.there = {"last": file(1, mtime_ns=10)}
    scene.look()
    scene.there["epoch=1"] = file(2, mtime_ns=20)
    scene.look()
    scene.there["last"] = anew
    scene.look(after=SETTLE_S / 2)
    assert scene.look(after=SETTLE_S / 2) == ["epoch=1"]
    assert scene.look(after=SETTLE_S) == ["last"]
    assert scene.recogniser.is_newest(scene.recogniser.entries["last"])
    assert not scene.recogniser.is_newest(scene.recogniser.entries["epoch=1"])


def test_the_last_that_a_killed_attempt_wrote_counts_when_it_is_written_to_again() -> None:
    scene = Scene()
    for number, mtime_ns in ((1, 1), (2, 2), (3, 150), (4, 160)):
        scene.write(f"checkpoint-{number}", "a", mtime_ns=mtime_ns)
    scene.recogniser.observe(scene.there, old=[f"checkpoint-{number}" for number in (1, 2, 3)])
    scene.recogniser.expect_leftovers(before_ns=100)
    # After the first the killed writer went on; the third and the fourth are of this attempt.
    assert scene.look(after=SETTLE_S) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert scene.look(after=100 * SETTLE_S, last=True) == []
    assert [entry.path for entry in scene.recogniser.never_finished()] == ["checkpoint-2"]
    scene.write("checkpoint-2", "a", mtime_ns=200)
    scene.look()
    assert scene.look(after=SETTLE_S) == ["checkpoint-2"]


def test_what_this_attempt_wrote_before_the_watch_began_is_no_leftover() -> None:
    scene = Scene()
    scene.write("checkpoint-1", "a", mtime_ns=200)
    scene.recogniser.observe(scene.there, old=list(scene.there))
    scene.recogniser.expect_leftovers(before_ns=100)
    assert scene.look(after=SETTLE_S) == ["checkpoint-1"]

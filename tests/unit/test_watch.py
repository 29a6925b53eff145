"""The thread that goes round, with a checkpointer that does what a test says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import BacklogError, SnapshotError, StoreError, WatchError
from async_ckpt.watch import Watch, WatchOptions, retention, scan
from async_ckpt.watch.events import Events
from async_ckpt.watch.tree import read_tree
from harness.common import log_lines
from harness.tasks.task import wait_until


@dataclass
class Saved:
    id: str


@dataclass
class Checkpointer:
    """Keeps what is saved; ``trouble`` is raised by the saves to come, one each."""

    before: list[dict[str, Any]] = field(default_factory=list)
    saved: list[dict[str, Any]] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    meanwhile: Callable[[str], None] = lambda path: None
    states: Callable[[str], str] = lambda identity: "ADMITTED"
    asked: list[str] = field(default_factory=list)
    tries: int = 0
    can_list: bool = True
    #: Where it holds what may become checkpoints.
    spool: Path = Path()
    _directories: int = 0

    def new_early_directory(self, path: str) -> str:
        self._directories += 1
        return str(self.spool / str(self._directories))

    def save(self, path: str, *, check: Callable[[], None], **options: Any) -> Saved:
        self.tries += 1
        self.meanwhile(path)
        check()
        if self.trouble:
            error = self.trouble.pop(0)
            if isinstance(error, StoreError):
                self.saved.append({"path": path, **options})
            raise error
        self.saved.append({"path": path, **options})
        return Saved(f"0.mfchckpt.{len(self.saved) - 1}")

    def state(self, identity: str) -> tuple[str, str]:
        self.asked.append(identity)
        return self.states(identity), ""

    def list(self) -> list[dict[str, Any]]:
        if not self.can_list:
            raise StoreError("The store is out of reach")
        return self.before


class Scene:
    def __init__(self, out: Path) -> None:
        self.out, self.checkpointer, self.lines = out, Checkpointer(spool=out.parent / "spool"), list[str]()
        self.checkpointer.spool.mkdir()
        self.watches: list[Watch] = []

    def start(self, **options: Any) -> Watch:
        config = Config(watch_settle_s=0.0, rescan_s=0.02)
        watch = Watch(self.checkpointer, self.out, WatchOptions(**options), config)
        self.watches.append(watch)
        return watch

    def write(self, name: str, text: str = "x") -> None:
        (self.out / name).mkdir(exist_ok=True)
        (self.out / name / "model").write_text(text)

    def paths(self) -> list[str]:
        return [os.path.basename(item["path"]) for item in self.checkpointer.saved]

    def heard(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "out")
    made.out.mkdir()
    with log_lines.collected(made.lines):
        yield made
        for watch in made.watches:
            watch.stop(complete=False)


def test_a_full_backlog_and_errors_that_pass_cost_time_and_no_checkpoint_and_are_told_once(scene: Scene) -> None:
    scene.checkpointer.trouble = [BacklogError("The store cannot keep up"), SnapshotError("The disk is full")]
    scene.write("checkpoint-1")
    watch = scene.start()
    wait_until(lambda: watch.saved == 1, "it is saved at last")
    watch.stop()
    assert scene.paths() == ["checkpoint-1"]
    assert len(scene.heard("checkpoint-1 waits: The store cannot keep up")) == 1
    assert len(scene.heard("checkpoint-1 is not saved: The disk is full")) == 1


def test_an_error_that_does_not_pass_is_raised_at_the_end_and_the_others_are_saved(scene: Scene) -> None:
    def fail_for_two(path: str) -> None:
        if path.endswith("-2"):
            raise SnapshotError("Cannot capture it: it is a FIFO")

    scene.checkpointer.meanwhile = fail_for_two
    for number in (1, 2, 3):
        scene.write(f"checkpoint-{number}")
    watch = scene.start()
    wait_until(lambda: watch.saved == 2, "the others are saved")
    with pytest.raises(WatchError, match="checkpoint-2 is not saved: Cannot capture it: it is a FIFO"):
        watch.stop()
    assert sorted(scene.paths()) == ["checkpoint-1", "checkpoint-3"]


def test_one_that_is_admitted_while_the_store_refuses_others_is_not_saved_twice(scene: Scene) -> None:
    scene.checkpointer.trouble = [StoreError("The store refuses checkpoints")]
    scene.write("checkpoint-1")
    watch = scene.start(keep=1)
    watch.stop()
    assert (scene.paths(), scene.checkpointer.tries, watch.saved) == (["checkpoint-1"], 1, 1)
    assert scene.heard("The store refuses checkpoints")


def test_what_is_written_to_while_it_is_captured_is_not_saved_but_later_and_whole(scene: Scene) -> None:
    def write_on(path: str) -> None:
        if scene.checkpointer.tries == 1:
            Path(path, "optimizer").write_text("y")

    scene.checkpointer.meanwhile = write_on
    scene.write("checkpoint-1")
    watch = scene.start()
    wait_until(lambda: watch.saved == 1, "it is saved")
    watch.stop()
    assert (scene.paths(), scene.checkpointer.tries) == (["checkpoint-1"], 2)


def test_one_that_its_trainer_removes_before_it_is_saved_is_a_line_and_no_error(scene: Scene) -> None:
    def remove(path: str) -> None:
        os.rename(path, scene.out.parent / "removed")
        raise SnapshotError("Cannot save it: it does not exist")

    scene.checkpointer.meanwhile = remove
    scene.write("checkpoint-1")
    watch = scene.start()
    wait_until(lambda: scene.checkpointer.tries and not watch._recogniser.entries, "it is gone")
    watch.stop()
    assert scene.heard("checkpoint-1 has gone before it was saved")
    assert scene.paths() == []


def test_what_is_gone_and_could_not_be_saved_in_time_is_told_at_the_end(scene: Scene) -> None:
    go_on = threading.Event()
    scene.checkpointer.meanwhile = lambda path: go_on.wait(60) and None
    watch = scene.start(settle=60.0)
    for number in (1, 2, 3):
        scene.write(f"checkpoint-{number}")
        wait_until(lambda number=number: len(watch._recogniser.captures()) == number, "it is captured")
    for number in (1, 2):
        os.rename(scene.out / f"checkpoint-{number}", scene.out.parent / f"removed-{number}")
    wait_until(lambda: scene.checkpointer.tries, "the first one is being saved")
    watch.stop(0.0, complete=False)
    go_on.set()
    watch._thread.join(60)
    assert watch._left[-1] == "checkpoint-2 has gone, and there was no time to save it"


def test_while_the_store_does_not_tell_what_was_saved_old_ones_wait_and_new_ones_do_not(scene: Scene) -> None:
    scene.write("checkpoint-1")
    scene.checkpointer.can_list = False
    watch = scene.start()
    scene.write("checkpoint-2")
    wait_until(lambda: watch.saved == 1, "the new one is saved")
    assert scene.paths() == ["checkpoint-2"]
    wait_until(lambda: scene.heard("What was saved before cannot be listed"), "the reason is told")
    watch.stop()
    assert scene.paths() == ["checkpoint-2", "checkpoint-1"], "twice is better than never"
    assert scene.checkpointer.saved[1]["latest"] is False, "a newer one is there"


def test_what_an_earlier_watch_saved_is_known_by_its_metadata_unless_that_failed(scene: Scene) -> None:
    for number in (1, 2):
        scene.write(f"checkpoint-{number}")
    scene.start().stop()
    kept, failed = scene.checkpointer.saved
    scene.checkpointer.before = [
        {"metadata": kept["metadata"], "state": "COMMITTED"},
        {"metadata": failed["metadata"], "state": "FAILED"},
        {"metadata": {}, "state": "COMMITTED"},
    ]
    scene.start().stop()
    assert scene.paths() == ["checkpoint-1", "checkpoint-2", "checkpoint-2"]
    scene.write("checkpoint-1", "anew")
    scene.start(existing=False).stop()
    assert len(scene.paths()) == 3
    scene.start().stop()
    assert sorted(scene.paths()[3:]) == ["checkpoint-1", "checkpoint-2"], "one was written anew, one failed"


@pytest.mark.parametrize(
    ("source", "found", "why"),
    [
        (lambda path: {"step": int(path[-1])}, {"step": 1}, ""),
        ("model", {"loss": 0.5}, ""),
        ("nothing.json", {}, "FileNotFoundError"),
        ("broken.json", {}, "JSONDecodeError"),
        (lambda path: {"a": object(), 3: {2, 1}}, {"a": "<object object>", "3": [1, 2]}, ""),
        (lambda path: [1, 2], {"metadata_from": [1, 2]}, ""),
        (lambda path: None, {}, ""),
        (lambda path: 1 / 0, {}, "ZeroDivisionError"),
        (lambda path: sys.exit("no"), {}, "SystemExit: no"),
        (lambda path: {"path": "mine", "watched": "mine"}, {"path": "mine"}, ""),
    ],
)
def test_metadata_comes_from_a_function_or_a_file_and_without_it_the_save_still_happens(
    scene: Scene, source: Any, found: dict[str, Any], why: str
) -> None:
    scene.write("checkpoint-1", '{"loss": 0.5}')
    (scene.out / "checkpoint-1" / "broken.json").write_text("{")
    scene.start(metadata_from=source).stop()
    (metadata,) = (item["metadata"] for item in scene.checkpointer.saved)
    assert len(metadata.pop("watched")) == 32
    assert metadata == {"path": "checkpoint-1", **found}
    assert [why in line for line in scene.heard("without metadata_from")] == ([True] if why else [])


def test_the_history_in_a_file_is_not_kept_with_every_checkpoint_and_the_log_says_so_once(scene: Scene) -> None:
    history = [{"step": step, "loss": 1 / (step + 1)} for step in range(50_000)]
    for number in (1, 2):
        scene.write(f"checkpoint-{number}", json.dumps({"global_step": number, "log_history": history}))
    scene.start(metadata_from="model").stop()
    for saved in scene.checkpointer.saved:
        assert saved["metadata"]["log_history"] == history[-1]
        assert len(json.dumps(saved["metadata"])) < 1000
    assert [line.rpartition(": ")[2] for line in scene.heard("Of model")] == [
        "log_history before its last entry. The checkpoint has the whole file"
    ]


def test_what_others_keep_as_metadata_does_not_stop_a_watch(scene: Scene) -> None:
    scene.checkpointer.before = [
        {"metadata": odd, "state": "COMMITTED"} for odd in (None, [1], "watched", 3, {"watched": []})
    ]
    scene.write("checkpoint-1", "x")
    scene.start().stop()
    assert scene.paths() == ["checkpoint-1"]


def test_one_that_cannot_be_read_holds_up_no_other_and_is_told_at_the_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str) -> Any:
        if path.endswith("-1"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return read_tree(path)

    monkeypatch.setattr(scan, "read_tree", read)
    for number in (1, 2):
        scene.write(f"checkpoint-{number}")
    with pytest.raises(WatchError, match="checkpoint-1 cannot be read: Permission denied"):
        scene.start().stop()
    assert scene.paths() == ["checkpoint-2"]
    assert len(scene.heard("cannot be read")) == 1


def test_one_that_was_out_of_sight_is_not_saved_again(scene: Scene) -> None:
    scene.write("checkpoint-1")
    watch = scene.start()
    wait_until(lambda: watch.saved == 1, "it is saved")
    os.rename(scene.out / "checkpoint-1", scene.out.parent / "away")
    wait_until(lambda: not watch._recogniser.entries, "it is out of sight")
    os.rename(scene.out.parent / "away", scene.out / "checkpoint-1")
    watch.stop()
    assert scene.paths() == ["checkpoint-1"]


def test_a_log_that_is_gone_and_a_name_that_is_no_text_end_no_watch(scene: Scene) -> None:
    def gone(line: str) -> None:
        scene.lines.append(line)
        raise BrokenPipeError

    with log_lines.written_with(gone):
        watch = Watch(scene.checkpointer, scene.out, WatchOptions(), Config(watch_settle_s=0.0))
        scene.write(os.fsdecode(b"checkpoint-\xff"))
        watch.stop()
    assert watch.saved == 1
    assert scene.heard(r"checkpoint-\udcff is saved as")


def test_a_mistake_in_a_round_does_not_end_the_watch_and_is_told_at_the_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = scene.start()
    broken = threading.Event()

    def fail() -> dict[str, str]:
        broken.set()
        raise ZeroDivisionError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(Events, "take_renames", lambda self: fail())
        assert broken.wait(60)
        wait_until(lambda: scene.heard("a mistake"), "it is told")
    scene.write("checkpoint-1")
    wait_until(lambda: watch.saved == 1, "the watch goes on")
    monkeypatch.setattr(Events, "take_renames", lambda self: fail())
    with pytest.raises(WatchError, match="a mistake"):
        watch.stop()


# -- room on the disk --------------------------------------------------------------------------------------------------


def test_what_something_has_cleaned_out_of_the_spool_is_captured_once_more(scene: Scene) -> None:
    def clean(path: str) -> None:
        if scene.checkpointer.tries == 1:
            shutil.rmtree(os.path.dirname(path))
            raise SnapshotError("There is nothing to save", where=path)

    scene.checkpointer.meanwhile = clean
    for name in ("ckpt-1.data-00000-of-00001", "ckpt-1.index"):
        (scene.out / name).write_text("x")
    watch = scene.start(pattern="ckpt-*")
    wait_until(lambda: watch.saved == 1, "it is saved")
    assert scene.checkpointer.tries == 2


def test_what_fits_and_is_passed_over_for_its_name_is_told_at_the_end_although_others_are_saved(scene: Scene) -> None:
    for name in ("model-a", "model-b.3f2a9c1b", "model-writing", ".model-c.swp"):
        scene.write(name)
    (scene.out / "model-a" / "model.lock").touch()
    (scene.out / "model-last").symlink_to("model-a")
    (scene.out / "model-best").symlink_to(scene.out.parent / "spool")
    scene.start(pattern="model*").stop()
    assert scene.paths() == ["model-a"]
    assert scene.heard("left out: model-b.3f2a9c1b, model-writing, by name unfinished")
    assert scene.heard("left out: model-best: links are not followed")


def test_one_in_which_snapshots_of_its_own_files_lie_is_not_removed_before_they_are_in_the_store(scene: Scene) -> None:
    scene.checkpointer.states = lambda identity: "COMMITTED"
    waiting = scene.out / "checkpoint-0" / f".async_ckpt-{os.getuid()}" / "spool-1" / "1-ab"
    waiting.mkdir(parents=True)
    scene.write("checkpoint-0")
    watch = scene.start(keep=1)
    for number in (1, 2):
        wait_until(lambda number=number: watch.saved == number, "it is saved")
        scene.write(f"checkpoint-{number}")
    wait_until(lambda: scene.heard("checkpoint-1 is removed"), "the next one is removed")
    assert os.listdir(waiting.parent) == ["1-ab"]
    waiting.rmdir()
    wait_until(lambda: scene.heard("checkpoint-0 is removed"), "it is removed")
    assert os.listdir(scene.out) == ["checkpoint-2"]


def test_room_is_made_behind_those_that_are_not_in_the_store_and_each_of_them_is_asked_for_once(scene: Scene) -> None:
    lost = 10  # More than are removed in one round.
    ids = [f"0.mfchckpt.{number}" for number in range(lost)]
    ends = {identity: ("SUPERSEDED", "FAILED")[number % 2] for number, identity in enumerate(ids)}
    scene.checkpointer.states = lambda identity: ends.get(identity, "COMMITTED")
    watch = scene.start(keep=2)
    for number in range(lost + 12):
        scene.write(f"checkpoint-{number}")
        wait_until(lambda number=number: watch.saved == number + 1, "it is saved")
    wait_until(lambda: len(os.listdir(scene.out)) == lost + 2, "all others are removed")
    newest = [lost + 10, lost + 11]
    assert sorted(os.listdir(scene.out)) == sorted(f"checkpoint-{n}" for n in [*range(lost), *newest])
    assert all(scene.checkpointer.asked.count(identity) == 1 for identity in ids)


def test_the_agent_is_asked_about_no_more_than_a_few_in_a_round(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(*arguments: Any) -> Any:
        before = len(scene.checkpointer.asked)
        found = retain(*arguments)
        asked.append(len(scene.checkpointer.asked) - before)
        return found

    retain = retention.retain
    monkeypatch.setattr(retention, "retain", count)
    for number in range(100):
        scene.write(f"checkpoint-{number}")
    watch = scene.start(keep=2)
    wait_until(lambda: watch.saved == 100 and asked[-1:] != [0], "all are saved, and it was asked")
    watch.stop()
    assert max(asked) == 64


def test_one_that_cannot_be_removed_is_told_once_and_holds_up_neither_others_nor_the_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stuck = os.rename, [f"checkpoint-{number}" for number in range(10)]

    def rename(source: str, target: str) -> None:
        if os.path.basename(source) in stuck:
            raise OSError(errno.EBUSY, "Device or resource busy", source)
        real(source, target)

    monkeypatch.setattr(retention.os, "rename", rename)
    scene.checkpointer.states = lambda identity: "COMMITTED"
    watch = scene.start(keep=2)
    for number in range(20):
        scene.write(f"checkpoint-{number}")
        wait_until(lambda number=number: watch.saved == number + 1, "it is saved")
    wait_until(lambda: len(os.listdir(scene.out)) == len(stuck) + 2, "all others are removed")
    watch.stop()
    told = scene.heard("cannot be removed from the disk: Device or resource busy")
    assert sorted(line.split()[1] for line in told) == stuck


def test_what_cannot_be_removed_to_its_end_is_told_and_does_not_fail_the_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(retention, "remove_tree", remove)
    (scene.out / ".async_ckpt-removed-1").mkdir()
    scene.checkpointer.states = lambda identity: "COMMITTED"
    watch = scene.start(keep=1)
    for number in range(2):
        scene.write(f"checkpoint-{number}")
        wait_until(lambda number=number: watch.saved == number + 1, "it is saved")
    wait_until(lambda: scene.heard("checkpoint-0 is removed"), "it is out of the way")
    watch.stop()
    assert len(scene.heard("cannot be removed: Read-only file system")) == 2

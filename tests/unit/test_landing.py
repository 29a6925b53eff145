"""What a load does with what is there: nothing is written outside, nothing stale stays unsaid, nothing is lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from async_ckpt.capture.walk import walk
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, UsageError
from async_ckpt.task import landing, restore
from async_ckpt.task.landing import Arrival, Landing, check_clean, make_links
from harness.common.log_lines import collected
from harness.files.filesystems import CannotMount, small_tmpfs

KEEP = Config(dangling_links="keep")

#: Path → text → whether it leads out.
LINKS = {
    "a relative one within": ("latest", "step-3", False),
    "up and down again": ("d/latest", "../step-3", False),
    "to the folder itself": ("d/here", "..", False),
    "one that leads nowhere within": ("gone", "not there", False),
    "an absolute one": ("latest", "/etc", True),
    "an absolute one that leads nowhere": ("latest", "/nowhere/at all", True),
    "up": ("latest", "..", True),
    "up, from a folder": ("d/latest", "../../model", True),
    "out and in again": ("latest", "../into/step-3", True),
    "through a link that leads up": ("latest", "up/../../model", True),
    "through a link that leads out": ("latest", "out/model", True),
    "round in a circle": ("latest", "latest", True),
}
#: What stands there as well.
OTHERS = {"up": "d", "out": "../elsewhere", "d/deep": "."}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("form", ["manifest", "tar"])
def test_only_links_that_stay_inside_are_made_and_the_others_are_said(
    tmp_path: Path, name: str, form: str, said: list[str]
) -> None:
    path, text, out = LINKS[name]
    into = tmp_path / "into"
    (into / "d").mkdir(parents=True)
    links = {**OTHERS, path: text}

    if form == "manifest":
        make_links(links, str(into), Config())
    else:
        archive = tmp_path / "a.tar"
        with tarfile.open(archive, "w") as tar:
            for link, target in links.items():
                member = tarfile.TarInfo(link)
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
        restore.extract_tar(str(archive), str(into), Config(), where="there")
    assert not (into / "out").is_symlink()
    assert (into / path).is_symlink() is not out
    (line,) = said
    assert (f"{path} -> {text}" in line) is out
    assert "DANGLING_LINKS=keep" in line
    # What a trainer then writes lands inside or nowhere.
    (tmp_path / "elsewhere").mkdir()
    for folder, _, names in os.walk(into):
        for found in names:
            target = os.path.realpath(os.path.join(folder, found))
            assert target.startswith(f"{into}{os.sep}") or target == str(into)


def test_who_keeps_links_that_lead_nowhere_gets_them_as_they_were(tmp_path: Path, said: list[str]) -> None:
    make_links({"gone": "/nowhere/at all"}, str(tmp_path), KEEP)
    assert os.readlink(tmp_path / "gone") == "/nowhere/at all"
    assert said == []


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Lines of the log."""
    with collected() as lines:
        yield lines


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with an older, larger state."""
    into = tmp_path / "into"
    (into / "optimizer").mkdir(parents=True)
    for name in ("model-1-of-3", "model-2-of-3", "model-3-of-3", "optimizer/state", "optimizer/more"):
        (into / name).write_text("old")
    (into / ".async_ckpt-0").mkdir()
    (tmp_path / "outside").write_text("untouched")
    (into / "link").symlink_to(tmp_path / "outside")
    return into


def load(into: Path, arrival: Arrival, *, fails: bool = False) -> None:
    with Landing(str(into), arrival) as staging:
        os.mkdir(os.path.join(staging, "optimizer"))
        for name in ("model-1-of-1", "optimizer/state"):
            Path(staging, name).write_text("new")
        if fails:
            raise SnapshotError("It failed")


def content(into: Path) -> dict[str, str]:
    return {str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file()}


def test_what_stays_of_an_older_state_is_said_once(old: Path, said: list[str]) -> None:
    for _ in range(2):
        load(old, Arrival())
    (line,) = said
    assert "link, model-1-of-3, model-2-of-3 and 2 more are no part of the checkpoint" in line
    assert "clean=True" in line
    assert (old / "model-3-of-3").read_text() == "old"
    assert (old / "optimizer/state").read_text() == "new"


def test_of_one_ranks_part_nothing_is_said(old: Path, said: list[str]) -> None:
    """The rest may be the other ranks'."""
    load(old, Arrival(tell_stale=False))
    assert said == []


def test_nothing_is_said_where_nothing_stays(tmp_path: Path, said: list[str]) -> None:
    for _ in range(2):
        load(tmp_path / "into", Arrival())
    assert said == []


def test_a_clean_load_leaves_only_the_checkpoint_and_nothing_outside_is_touched(old: Path, said: list[str]) -> None:
    load(old, Arrival(clean=True))
    assert content(old) == {"model-1-of-1": "new", "optimizer/state": "new"}
    assert sorted(os.listdir(old)) == [".async_ckpt-0", "model-1-of-1", "optimizer"]
    assert (old.parent / "outside").read_text() == "untouched"
    assert said == []


def test_the_old_state_survives_a_clean_load_that_fails(old: Path) -> None:
    before = content(old)
    with pytest.raises(SnapshotError, match="It failed"):
        load(old, Arrival(clean=True), fails=True)
    assert content(old) == before
    assert len(os.listdir(old)) == 6


#: How many renames there are: those of a clean load take five away and put two there.
RENAMES = {True: 7, False: 2}


@pytest.mark.parametrize(("clean", "at"), [(clean, at) for clean, most in RENAMES.items() for at in range(most + 1)])
def test_the_old_state_survives_a_load_that_cannot_get_into_place(
    old: Path, monkeypatch: pytest.MonkeyPatch, clean: bool, at: int
) -> None:
    """Each of its renames fails once."""
    before, calls, rename = content(old), io.StringIO(), os.rename

    def failing(source: str, target: str, **of_remove_tree: int) -> None:
        if of_remove_tree:
            rename(source, target, **of_remove_tree)
            return
        calls.write("x")
        if len(calls.getvalue()) == at + 1:
            raise OSError(16, "Device or resource busy", source)
        rename(source, target)

    monkeypatch.setattr(landing.os, "rename", failing)
    if at == RENAMES[clean]:
        load(old, Arrival(clean=clean))
        return
    with pytest.raises(SnapshotError, match="Device or resource busy"):
        load(old, Arrival(clean=clean))
    assert content(old) == before
    assert len(os.listdir(old)) == 6


@pytest.mark.parametrize("clean", [False, True])
def test_where_a_folder_takes_nothing_and_gives_nothing_nothing_is_called_lost(
    old: Path, monkeypatch: pytest.MonkeyPatch, clean: bool, said: list[str]
) -> None:
    """It is read-only, or somebody else's."""
    before, rename = content(old), os.rename

    def refusing(source: str, target: str, **of_remove_tree: int) -> None:
        if of_remove_tree:
            rename(source, target, **of_remove_tree)
            return
        if any(path.startswith(f"{old}/optimizer") for path in (source, target)):
            raise PermissionError(13, "Permission denied", source, None, target)
        rename(source, target)

    monkeypatch.setattr(landing.os, "rename", refusing)
    with pytest.raises(SnapshotError) as caught:
        load(old, Arrival(clean=clean))
    assert caught.value.where.startswith(f"{old}/optimizer")
    assert content(old) == before
    assert len(os.listdir(old)) == 6
    assert said == []


def test_a_file_is_always_there_while_it_is_replaced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, rename = old / "optimizer/state", os.rename
    seen = []

    def watched(source: str, target: str, **of_remove_tree: int) -> None:
        if of_remove_tree:
            rename(source, target, **of_remove_tree)
            return
        seen.append(state.read_text())
        rename(source, target)
        seen.append(state.read_text())

    monkeypatch.setattr(landing.os, "rename", watched)
    load(old, Arrival())
    assert set(seen) == {"old", "new"}


def test_files_and_folders_take_each_others_place_and_are_back_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/deep").write_text("old")
    (tmp_path / "b").write_text("old")
    (tmp_path / "c").symlink_to("a")
    before = {**content(tmp_path), "c": os.readlink(tmp_path / "c")}

    def load_others() -> None:
        with Landing(str(tmp_path), Arrival()) as staging:
            Path(staging, "a").write_text("new")
            for name in ("b", "c"):
                Path(staging, name).mkdir()
                Path(staging, name, "deep").write_text("new")

    with monkeypatch.context() as patch:
        # The last thing that is done before it is sure: a lasting fault there would be the worst.
        patch.setattr(landing, "_move_into", failing_at_the_end(landing._move_into))
        with pytest.raises(SnapshotError, match="No space left"):
            load_others()
    assert {**content(tmp_path), "c": os.readlink(tmp_path / "c")} == before
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]
    load_others()
    assert content(tmp_path) == {"a": "new", "b/deep": "new", "c/deep": "new"}


def failing_at_the_end(function: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        function(*arguments)
        raise OSError(28, "No space left on device")

    return call


def test_another_file_system_in_the_destination_is_no_place_to_load_to_and_is_never_cleaned(old: Path) -> None:
    before = content(old)

    def load_below(mounted: str) -> None:
        with Landing(str(old), Arrival()) as staging:
            Path(staging, "model-1-of-3").write_text("new")
            Path(staging, mounted).mkdir(parents=True)
            Path(staging, mounted, "state").write_text("new")

    try:
        with small_tmpfs(old / "optimizer", 1 << 20) as mounted:
            (mounted / "precious").write_text("kept")
            with pytest.raises(UsageError, match=f"would take away the file system that is mounted at {mounted}"):
                load(old, Arrival(clean=True))
            with pytest.raises(SnapshotError, match="Another file system is mounted there"):
                load_below(str(mounted.relative_to(old)))
            assert (mounted / "precious").read_text() == "kept"
            assert content(old) == {**before, str(mounted.relative_to(old) / "precious"): "kept"}
    except CannotMount as error:
        pytest.skip(str(error))


def test_what_the_file_system_keeps_for_itself_is_neither_said_nor_cleaned(old: Path, said: list[str]) -> None:
    (old / "lost+found").mkdir()
    load(old, Arrival(clean=True))
    load(old, Arrival())
    assert (old / "lost+found").is_dir()
    assert said == []


def test_what_a_killed_load_has_left_is_removed_by_the_next_one_and_what_another_still_needs_is_not(
    tmp_path: Path, said: list[str]
) -> None:
    script = (
        "import os, signal, sys; from async_ckpt.task.landing import Landing, Arrival\n"
        "with Landing(sys.argv[1], Arrival()) as staging:\n"
        "    for path in (f'{staging}/large', f'{staging}/../tar'): open(path, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    assert list(walk(str(tmp_path), Config())) == []  # A save takes nothing of it.
    with Landing(str(tmp_path), Arrival()) as first:
        assert os.listdir(tmp_path) == [name_of(first)]
        with Landing(str(tmp_path), Arrival()) as second:
            assert sorted(os.listdir(tmp_path)) == sorted(map(name_of, (first, second)))
    assert os.listdir(tmp_path) == []
    (line,) = said
    assert "that was killed" in line


def name_of(staging: str) -> str:
    """The load's own directory, in the destination."""
    return os.path.basename(os.path.dirname(staging))


def test_a_clean_load_needs_neither_a_home_directory_nor_a_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pods run as a user whom nobody knows."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    check_clean(str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_clean_load_is_refused_where_it_would_take_what_nobody_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work/deep").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work/deep")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "alias").symlink_to(tmp_path / "work")
    for folder in ("/", ".", "..", str(tmp_path), str(tmp_path / "alias"), str(tmp_path / "home")):
        with pytest.raises(UsageError, match="would take away"):
            check_clean(folder)
    with pytest.raises(UsageError, match="spool"):
        check_clean(str(tmp_path / "data"), (str(tmp_path / "data/async-ckpt-0/x"),))
    check_clean("inside")
    check_clean(str(tmp_path / "work2"))

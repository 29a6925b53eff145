"""What a load does with what is there: nothing is written outside, nothing stale stays unsaid, nothing is lost."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from async_ckpt import landing, restore
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError, UsageError
from async_ckpt.landing import Arrival, Landing, check_clean, make_links

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
def test_only_links_that_stay_inside_are_made_and_the_others_are_said(tmp_path: Path, name: str, form: str) -> None:
    path, text, out = LINKS[name]
    into, said = tmp_path / "into", list[str]()
    (into / "d").mkdir(parents=True)
    links = {**OTHERS, path: text}

    def make(links: dict[str, str]) -> None:
        make_links(links, str(into), Config(), said.append)

    if form == "manifest":
        make(links)
    else:
        archive = tmp_path / "a.tar"
        with tarfile.open(archive, "w") as tar:
            for link, target in links.items():
                member = tarfile.TarInfo(link)
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
        restore.extract_tar(str(archive), str(into), make, where="there")
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


def test_who_keeps_links_that_lead_nowhere_gets_them_as_they_were(tmp_path: Path) -> None:
    said = list[str]()
    make_links({"gone": "/nowhere/at all"}, str(tmp_path), KEEP, said.append)
    assert os.readlink(tmp_path / "gone") == "/nowhere/at all"
    assert said == []


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


def test_what_stays_of_an_older_state_is_said_once(old: Path) -> None:
    said = list[str]()
    for _ in range(2):
        load(old, Arrival(say=said.append))
    (line,) = said
    assert "link, model-1-of-3, model-2-of-3 and 2 more are no part of the checkpoint" in line
    assert "clean=True" in line
    assert (old / "model-3-of-3").read_text() == "old"
    assert (old / "optimizer/state").read_text() == "new"


def test_nothing_is_said_where_nothing_stays(tmp_path: Path) -> None:
    said = list[str]()
    for _ in range(2):
        load(tmp_path / "into", Arrival(say=said.append))
    assert said == []


def test_a_clean_load_leaves_only_the_checkpoint_and_nothing_outside_is_touched(old: Path) -> None:
    said = list[str]()
    load(old, Arrival(clean=True, say=said.append))
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


@pytest.mark.parametrize("at", range(8))
def test_the_old_state_survives_a_clean_load_that_cannot_get_into_place(
    old: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Each of its renames fails once."""
    before, calls, rename = content(old), io.StringIO(), os.rename

    def failing(source: str, target: str) -> None:
        calls.write("x")
        if len(calls.getvalue()) == at + 1:
            raise OSError(16, "Device or resource busy", source)
        rename(source, target)

    monkeypatch.setattr(landing.os, "rename", failing)
    if at == 7:  # There are five to take away and two to put there.
        load(old, Arrival(clean=True))
        return
    with pytest.raises(SnapshotError, match="Device or resource busy"):
        load(old, Arrival(clean=True))
    assert content(old) == before
    assert len(os.listdir(old)) == 6


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

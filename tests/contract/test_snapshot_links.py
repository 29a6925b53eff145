"""Symbolic links in what is saved: what becomes of each, with every strategy on every file system."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from async_ckpt.capture.symlinks import Root, item_of_link
from async_ckpt.config import Config
from harness.tasks.task import Task, content

from .snapshot_suite import BIG, Place, captured_tree, read


def _fill(place: Place) -> Path:
    """Something to link to, within what is saved and outside of it."""
    for folder in (place.source, place.source.parent / "outside"):
        (folder / "deep/er").mkdir(parents=True)
        for number, name in enumerate(["top", "deep/file", "deep/er/big"]):
            (folder / name).write_bytes(content(number + len(str(folder.name)), BIG if name.endswith("big") else 7))
    return place.source.parent / "outside"


@pytest.mark.parametrize(
    ("link", "text", "kept"),
    [
        ("link", "deep/file", None),
        ("link", "./deep//file", None),
        ("link", "deep", None),
        ("link", "deep/", None),
        ("deep/er/link", "../../top", None),
        ("deep/er/link", "../file", None),
        ("here", ".", None),
        ("deep/parent", "..", None),
        ("deep/er/up", "../..", None),
        ("link", "{source}/deep/file", "deep/file"),
        ("deep/er/link", "{source}/top", "../../top"),
        ("deep/er/link", "{source}", "../.."),
        ("link", "../source/top", "top"),
        ("deep/link", "../../source/deep/er/big", "er/big"),
        ("link", "deep/er/../file", "deep/file"),
        ("link", "{other name}/deep/file", "deep/file"),
    ],
)
def test_a_link_to_what_is_saved_as_well_stays_a_link(place: Place, link: str, text: str, kept: str | None) -> None:
    _fill(place)
    other = place.source.parent / "other name"
    other.symlink_to(place.source)
    path = place.source / link
    path.symlink_to(text.format_map({"source": place.source, "other name": other}))
    captured, target = place.capture()
    assert [(item.path, item.target) for item in captured.manifest.links] == [(link, kept or text)]
    assert len(captured.manifest.files) == 3
    assert captured.followed == []
    # It leads to the same on any other machine.
    assert Path(target, link).resolve() == target.resolve() / path.resolve().relative_to(place.source.resolve())


def test_a_link_to_a_link_stays_one(place: Place) -> None:
    _fill(place)
    (place.source / "last.ckpt").symlink_to("best.ckpt")
    (place.source / "best.ckpt").symlink_to("deep/file")
    captured, _ = place.capture()
    assert {item.path: item.target for item in captured.manifest.links} == {
        "last.ckpt": "best.ckpt",
        "best.ckpt": "deep/file",
    }


@pytest.mark.parametrize("text", ["{outside}/{name}", "../outside/{name}"])
@pytest.mark.parametrize("name", ["top", "deep/er/big"])
def test_a_link_to_a_file_elsewhere_becomes_that_file(place: Place, text: str, name: str) -> None:
    outside = _fill(place)
    (place.source / "model").symlink_to(text.format(outside=outside, name=name))
    captured, target = place.capture()
    assert captured.manifest.links == []
    assert read(captured, target, "model") == (outside / name).read_bytes()
    assert captured.followed == [str(place.source / "model")]


def test_a_link_to_a_folder_elsewhere_becomes_that_folder(place: Place) -> None:
    outside = _fill(place)
    (outside / "deep/empty").mkdir()
    (outside / "deep/inner").symlink_to("er/big")  # Within it: stays a link.
    (outside / "deep/back").symlink_to(place.source / "top")  # To what is saved: becomes a link to that.
    (outside / "deep/up").symlink_to("../top")  # Out of it once more.
    (place.source / "deep/base").symlink_to(outside / "deep")
    captured, target = place.capture()
    found = captured_tree(captured, target)
    for name in ("file", "er/big"):
        assert found[f"deep/base/{name}"] == (0o644, (outside / "deep" / name).read_bytes())
    assert found["deep/base/up"] == (0o644, (outside / "top").read_bytes())
    assert "deep/base/empty" in found
    assert found["deep/base/inner"] == ("link", "er/big")
    assert found["deep/base/back"] == ("link", "../../top")


def test_folders_that_link_to_each_other_are_saved_once(place: Place) -> None:
    outside = _fill(place)
    (outside / "deep/other").symlink_to(outside.parent / "second")
    (outside.parent / "second").mkdir()
    (outside.parent / "second/file").write_bytes(b"second")
    (outside.parent / "second/back").symlink_to(outside / "deep")
    (place.source / "base").symlink_to(outside / "deep")
    captured, target = place.capture()
    assert read(captured, target, "base/other/file") == b"second"
    assert [(link.path, link.target) for link in captured.manifest.links] == [("base/other/back", "..")]


def test_a_link_that_comes_back_through_another_folder_is_one_to_what_is_saved(place: Place) -> None:
    outside = _fill(place)
    (outside / "detour").symlink_to(place.source / "deep")
    (place.source / "link").symlink_to(outside / "detour")
    captured, _ = place.capture()
    assert [(link.path, link.target) for link in captured.manifest.links] == [("link", "deep")]


def test_the_cache_of_hugging_face_is_saved_whole_from_a_snapshot_of_it(place: Place) -> None:
    blobs, snapshot = place.source / "blobs", place.source / "snapshots/0123abc"
    blobs.mkdir()
    (snapshot / "onnx").mkdir(parents=True)
    for number, name in enumerate(["config.json", "model.safetensors", "onnx/model.onnx"]):
        (blobs / str(number)).write_bytes(content(number, BIG * number + 5))
        (snapshot / name).symlink_to("../" * name.count("/") + f"../../blobs/{number}")
    whole, _ = place.capture()
    assert len(whole.manifest.files) == len(whole.manifest.links) == 3
    captured, target = place.capture(snapshot)
    assert captured.manifest.links == []
    for number, name in enumerate(["config.json", "model.safetensors", "onnx/model.onnx"]):
        assert read(captured, target, name) == content(number, BIG * number + 5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/nowhere/at all", "leads nowhere"),
        ("missing", "leads nowhere"),
        ("top/file", "leads nowhere"),
        ("{outside}/top/../deep/file", "leads nowhere"),
        ("bad", "round in a circle"),
        ("bad/x", "round in a circle"),
        ("/", "leads up to a folder that holds what is saved"),
        ("..", "leads up to a folder that holds what is saved"),
        ("{outside}/..", "leads up to a folder that holds what is saved"),
        ("{outside}/fifo", "that is a FIFO"),
        ("{outside}/socket", "that is a socket"),
        ("/dev/null", "that is a device"),
        ("{outside}/gone", "leads nowhere"),
        ("n" * 300, "leads nowhere"),
    ],
)
@pytest.mark.parametrize("folder", ["", "deep/"])
def test_a_link_that_cannot_be_saved_is_refused_by_name(
    place: Place, monkeypatch: pytest.MonkeyPatch, text: str, why: str, folder: str
) -> None:
    outside = _fill(place)
    os.mkfifo(outside / "fifo")
    (outside / "gone").symlink_to("nothing here")
    monkeypatch.chdir(outside)  # A socket's path is short, or it is none.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    if folder and text in ("..", "top/file"):
        text = {"..": "../..", "top/file": "file/x"}[text]
    (place.source / folder / "bad").symlink_to(text.format(outside=outside))
    error = place.refused()
    assert re.search(why, str(error))
    assert str(place.source / folder / "bad") in str(error)
    assert error.hint


@pytest.mark.parametrize("text", ["/nowhere/at all", "missing", "../../x", "bad"])
def test_a_link_that_leads_nowhere_is_kept_where_that_is_asked_for(place: Place, text: str) -> None:
    (place.source / "bad").symlink_to(text)
    captured, _ = place.capture(config=Config(dangling_links="keep"))
    assert [(link.path, link.target) for link in captured.manifest.links] == [("bad", text)]


def test_a_file_of_the_kernel_that_says_it_is_empty_is_refused(place: Place) -> None:
    (place.source / "version").symlink_to("/proc/version")
    error = place.refused()
    assert str(place.source / "version") in str(error)
    assert "it has content and no size" in str(error)


def test_links_that_multiply_folders_without_end_are_refused(place: Place) -> None:
    # Two links from each level to the next: twenty levels are a million folders.
    levels = place.source.parent / "levels"
    for level in range(20):
        (levels / str(level)).mkdir(parents=True)
        for name in "ab":
            (levels / str(level) / name).symlink_to(f"../{level + 1}")
    (levels / "20").mkdir()
    (place.source / "first").symlink_to(levels / "0")
    error = place.refused()
    assert "to more than 1000 folders" in str(error)


def test_a_link_in_whose_place_something_else_is_by_now_has_vanished(tmp_path: Path) -> None:
    (tmp_path / "was-a-link").write_text("a file")
    with pytest.raises(FileNotFoundError, match="is no symbolic link any more"):
        item_of_link(str(tmp_path / "was-a-link"), "was-a-link", [Root(str(tmp_path), "")], keep_dangling=False)


def test_a_path_that_leads_round_in_a_circle_is_an_error_with_a_way_out(place: Place) -> None:
    (place.source / "self").symlink_to("self")
    error = place.refused(place.source / "self")
    assert str(place.source / "self") in str(error)
    assert "round in a circle" in error.hint


def test_the_log_says_once_a_name_that_links_are_saved_as_what_they_point_to(task: Task) -> None:
    outside = task.work / "base"
    outside.mkdir()
    heard: list[str] = []
    checkpointer = task.start(report=heard.append)
    for number, names in enumerate([["base"], ["base"], ["base", "vocab", "merges", "config"], ["vocab"]]):
        folder = task.work / f"checkpoint-{number}"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(outside)
        checkpointer.save(folder)
    first, more = [line for line in heard if "symbolic" in line]
    base = task.work / "checkpoint-0"
    assert first == f"The symbolic link {base}/base leads out of {base}, and is saved as what it points to"
    assert f"leads out of {task.work}/checkpoint-2" in more
    assert more.endswith("; so are 2 more")

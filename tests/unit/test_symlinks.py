"""Symbolic links from the save to a load on another machine: whatever a path led to, it leads to the same there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from async_ckpt import capture
from async_ckpt.config import Config
from async_ckpt.errors import SnapshotError
from async_ckpt.manifest import FileEntry, Manifest, Symlink
from async_ckpt.spool.records import Admitted
from async_ckpt.task import restore
from tests.spread import first_of

_NAMES = st.sampled_from(["a", "b", "c", "d"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_PREFIXES = st.sampled_from(["", "../", "../../", "./", "{inside}/", "{outside}/", "../inside/", "../../outside/"])
_TARGETS = st.tuples(_PREFIXES, st.one_of(_PATHS, st.just(""), st.just("a/../b"))).map("".join)
_PLACES = st.tuples(st.sampled_from(["inside", "outside"]), _PATHS).map("/".join)


@pytest.mark.parametrize("tries", first_of([60, 400]))
def test_every_path_leads_to_the_same_after_a_load_elsewhere(tries: int) -> None:
    settings(deadline=None, max_examples=tries)(every_path_leads_to_the_same)()


@given(st.lists(_PLACES, max_size=6), st.dictionaries(_PLACES, _TARGETS, max_size=6))
# One folder that two links lead to is a folder of each after the load, so one can be entered from the other.
@example(["outside/b"], {"inside/a": "{outside}/", "inside/b": "{outside}/", "outside/a": "{inside}/a"})
def every_path_leads_to_the_same(files: list[str], links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as room:
        base = Path(room)
        for folder in ("inside", "outside"):
            (base / folder).mkdir()
        _make(base, files, links)
        inside = base / "inside"
        item = _capture(inside, base / "snapshot")
        if item is None:
            return
        expected = reachable(inside)
        known = reachable_for_clients_without_links(item.manifest)
        (base / "elsewhere").mkdir()
        elsewhere = base / "elsewhere" / "deep" / "down"
        restore.load_from_spool(item, str(elsewhere), Config())
        found = reachable(elsewhere)
        assert found.items() >= expected.items()
        assert {path: (inside / path).read_bytes() for path in found} == found
        for folder in ("inside", "outside"):
            shutil.rmtree(base / folder)
        assert reachable(elsewhere) == found
        one_folder_link = {path for path in expected if _folder_links(elsewhere, path) <= 1}
        assert one_folder_link <= known


def _make(base: Path, files: list[str], links: dict[str, str]) -> None:
    for number, path in enumerate(files):
        try:
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_bytes(b"%d" % number)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue
    for path, target in links.items():
        try:
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).symlink_to(target.format(inside=base / "inside", outside=base / "outside") or ".")
        except (NotADirectoryError, FileExistsError, FileNotFoundError, OSError):
            continue


def _capture(path: Path, target: Path) -> Admitted | None:
    """None: it was refused, and rightly so."""
    try:
        captured = capture.capture(str(path), str(target), "copy", Config())
    except SnapshotError as error:
        link = Path(error.where)
        assert link.is_symlink()
        # Nowhere, in a circle, or up to a folder above one that is saved: nothing else here is refused.
        up = "leads up to a folder" in str(error)
        assert up == (link.exists() and link.is_dir())
        return None
    return Admitted("0.x.0", {}, captured.manifest, str(target), str(path))


def reachable(folder: Path) -> dict[str, bytes]:
    """What can be read below a folder through at most three links to folders, by path; a folder is entered once."""
    found: dict[str, bytes] = {}
    pending = [("", folder, 0, frozenset([folder.resolve()]))]
    while pending:
        prefix, at, links, above = pending.pop()
        for name in os.listdir(at):
            path = at / name
            if path.is_dir():
                more = links + path.is_symlink()
                if path.resolve() not in above and more <= 3:
                    pending.append((f"{prefix}{name}/", path, more, above | {path.resolve()}))
            elif path.exists():
                found[prefix + name] = path.read_bytes()
    return found


def _folder_links(root: Path, path: str) -> int:
    folders = [root.joinpath(*path.split("/")[: number + 1]) for number in range(path.count("/"))]
    return sum(folder.is_symlink() for folder in folders)


def reachable_for_clients_without_links(manifest: Manifest) -> set[str]:
    return {entry.path for entry in manifest.files} | {path for path, _ in manifest.files_behind_links()}


def _behind(files: list[str], links: dict[str, str]) -> dict[str, str]:
    manifest = Manifest([FileEntry(path, 1, 0o644) for path in files], links=[Symlink(*item) for item in links.items()])
    return {path: entry.path for path, entry in manifest.files_behind_links()}


@pytest.mark.parametrize(
    ("files", "links", "expected"),
    [
        (["a.ckpt"], {"last.ckpt": "a.ckpt"}, {"last.ckpt": "a.ckpt"}),
        (["a"], {"b": "c", "c": "a"}, {"b": "a", "c": "a"}),
        (["d/x", "d/e/y"], {"l": "d"}, {"l/x": "d/x", "l/e/y": "d/e/y"}),
        (["d/x"], {"d/l": "../d"}, {}),
        (["d/x"], {"l": "."}, {}),
        (["d/x"], {"d/here": "x", "l": "d"}, {"d/here": "d/x", "l/x": "d/x", "l/here": "d/x"}),
        (["x"], {"a": "b", "b": "a", "c": "/etc/passwd", "d": "../x", "e": "nothing"}, {}),
        ([], {"a": "b"}, {}),
    ],
)
def test_files_behind_links_are_known_by_the_links_own_paths(
    files: list[str], links: dict[str, str], expected: dict[str, str]
) -> None:
    assert _behind(files, links) == expected


def test_times_of_files_and_folders_survive_a_load(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(b"x")
    (source / "last").symlink_to("a/b/file")
    times = {"a/b/file": 1_000_000_000_123_000_000, "a/b": 1_100_000_000_456_000_000, "a": 1_200_000_000_789_000_000}
    for path, mtime_ns in times.items():
        os.utime(source / path, ns=(mtime_ns, mtime_ns))
    item = _capture(source, tmp_path / "snapshot")
    assert item is not None
    restore.load_from_spool(item, str(tmp_path / "loaded"), Config())
    assert {path: os.stat(tmp_path / "loaded" / path).st_mtime_ns for path in times} == times

"""Manifests that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_ckpt import manifest
from async_ckpt.errors import IntegrityError
from async_ckpt.manifest import FORMAT, Directory, FileEntry, Manifest, Symlink

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    3,
    None,
    ["a"],
]
PARTS = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


def with_(**fields: Any) -> dict[str, Any]:
    return {"format": FORMAT, "files": [], "dirs": [], "links": [], **fields}


def file(**fields: Any) -> dict[str, Any]:
    return {"path": "a", "size": 1, "mode": 0o644, **fields}


@given(
    st.lists(
        st.builds(
            FileEntry,
            PATHS,
            st.integers(0, 2**62),
            st.integers(0, 0o777),
            offset=st.integers(0, 9),
            mtime_ns=st.integers(-(2**62), 2**62),
            crc32=st.none(),
            rank=st.none() | st.integers(0, 2**20),
        ),
        max_size=4,
    ),
    st.lists(st.builds(Directory, PATHS, st.integers(0, 0o777), st.integers(-(2**62), 2**62))),
    st.lists(st.builds(Symlink, PATHS, st.just("../anywhere"), st.none() | st.integers(0, 2**20))),
)
def test_it_comes_back_as_it_was_stored(files: list[FileEntry], folders: list[Directory], links: list[Symlink]) -> None:
    made = Manifest(files, folders, links)
    assert Manifest.from_json(manifest.load(manifest.dump(made.to_json()), where="x"), where="x") == made


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("kind", ["file", "dir", "link"])
def test_a_path_that_leads_out_is_refused(path: Any, kind: str) -> None:
    data = {
        "file": with_(files=[file(path=path)]),
        "dir": with_(dirs=[[path, 0o755]]),
        "link": with_(links=[[path, "target"]]),
    }[kind]
    with pytest.raises(IntegrityError) as caught:
        Manifest.from_json(data, where="the/key")
    assert caught.value.where == "the/key"
    assert "earlier" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        with_(format="async_ckpt.manifest/2"),
        with_(files=[{"path": "a"}]),
        with_(files=[file(size=-1)]),
        with_(files=[file(size="1")]),
        with_(files=[file(mode=None)]),
        with_(files=[file(crc32=["x"])]),
        with_(files=5),
        with_(dirs=[["a"]]),
        with_(links=[["a", "b", "c"]]),
        with_(links=[["a", "b", -1]]),
        with_(links=[["a", "b", ""]]),
    ],
)
def test_what_is_no_manifest_is_refused(data: Any) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_json(data, where="x")


@pytest.mark.parametrize(
    "more",
    [
        {"surprise": 1},
        {"digests": 5},
        {"digests": [5]},
        {"digests": ["blake9:00"], "etag": 7},
        {"digests": None, "etag": None},
    ],
)
def test_what_another_version_says_of_a_file_is_no_reason_not_to_load_it(more: dict[str, Any]) -> None:
    found = Manifest.from_json(with_(files=[file(crc32=[1], **more)]), where="x").files[0]
    assert (found.path, found.size, found.crc32) == ("a", 1, [1])
    assert all(isinstance(text, str) for text in (*found.digests, found.etag))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="Not JSON") as caught:
        manifest.load(data, where="the/key")
    assert caught.value.where == "the/key"


def test_names_that_are_no_text_are_stored_as_ascii() -> None:
    made = Manifest([FileEntry("odd-\udcff", 1, 0o644)])
    data = manifest.dump(made.to_json())
    assert data.isascii()
    assert Manifest.from_json(json.loads(data), where="x") == made


@pytest.mark.parametrize("mtime_ns", [253_402_300_799 * 10**9, -(2**62) * 10**9])
def test_whatever_time_a_file_system_can_have_is_stored(mtime_ns: int) -> None:
    made = Manifest([FileEntry("a", 1, 0o644, mtime_ns=mtime_ns)], [Directory("d", 0o755, mtime_ns)])
    assert Manifest.from_json(json.loads(manifest.dump(made.to_json())), where="") == made


def test_its_size_is_that_of_its_files() -> None:
    assert Manifest([FileEntry("a", 3, 0), FileEntry("b", 4, 0)]).size == 7

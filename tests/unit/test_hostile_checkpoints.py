"""One thing at a time that is wrong with a checkpoint somebody else wrote: it is refused with an error of ours."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_ckpt import layout, manifest
from async_ckpt.config import Config
from async_ckpt.stores import catalog
from async_ckpt.task import restore
from harness.hostile.loads import KEY, MANIFEST_KEY, METADATA_KEY, Load, Place
from harness.hostile.tars import header, padded, pax_record
from harness.tasks.task import TASK

CONFIG = Config()
DIGITS = "9" * 5000


@pytest.fixture
def place() -> Iterator[Place]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="async-ckpt-test-", dir=memory) as base:
        yield Place(Path(base))


def assert_refused(place: Place, load: Load) -> None:
    loaded, harm = asyncio.run(place.attempt(load))
    assert not harm
    assert not loaded


def loading(place: Place, **fields: Any) -> Load:
    reference = {"key": KEY, "storage_format": "files", "manifest": MANIFEST_KEY, **fields}
    return lambda: restore.load_from_store(place.store, reference, str(place.destination), CONFIG)


def file(**fields: Any) -> dict[str, Any]:
    return {"path": "a", "size": 1, "mode": 0o644, **fields}


DEEP = [["/".join("d" * depth), 0o755] for depth in range(1, 1200)]

MANIFESTS: dict[str, dict[str, Any]] = {
    "a link to nothing": {"links": [["l", ""]]},
    "a link with a NUL": {"links": [["l", "a\0b"]]},
    "a link that is no text": {"links": [["l", "\ud800"]]},
    "a file that is no text": {"files": [file(path="\ud800")]},
    "a directory that is no text": {"dirs": [["\ud800", 0o755]]},
    "a mode without end": {"dirs": [["d", float("inf")]]},
    "a mode that is too large": {"files": [file(mode=2**64)]},
    "digests that are an object": {"files": [file(crc32={"0": 0})]},
    "digests that are a number": {"files": [file(crc32=0)]},
    "a file that lies too deep": {"files": [file(path="d/" * 1500 + "a")]},
    "a link that lies too deep": {"links": [["d/" * 1500 + "l", "a"]]},
    "directories too deep to be removed": {"dirs": DEEP, "files": [file(path="missing")]},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_refused_with(place: Place, name: str) -> None:
    data = {"format": manifest.FORMAT, "files": [], "dirs": [], "links": [], **MANIFESTS[name]}
    place.put(MANIFEST_KEY, json.dumps(data).encode())
    place.put(f"{KEY}/a", b"1")
    assert_refused(place, loading(place))


@pytest.mark.parametrize("facts", [5, "x", True, [1], {"size": "1"}, {"size": 1, "crc32": 7}, {"size": 0, "crc32": {}}])
def test_a_manifest_is_refused_with_facts_of_its_tar_that_are_none(place: Place, facts: object) -> None:
    data = {"format": manifest.FORMAT, "files": [], "dirs": [], "links": [], "tar": facts}
    place.put(MANIFEST_KEY, json.dumps(data).encode())
    place.put(KEY, b"")
    assert_refused(place, loading(place, storage_format="tar"))


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777])
def test_nothing_that_is_loaded_runs_as_somebody_else(place: Place, mode: int) -> None:
    data = {"format": manifest.FORMAT, "files": [file(mode=mode)], "dirs": [], "links": []}
    place.put(MANIFEST_KEY, json.dumps(data).encode())
    place.put(f"{KEY}/a", b"1")
    _, harm = asyncio.run(place.attempt(loading(place)))
    assert not harm


END = bytes(1024)
REGULAR = header("a", tarfile.REGTYPE, size=1) + padded(b"1")

TARS = {
    "a member of negative size": header("a", tarfile.REGTYPE, size=-512),
    "a member of negative size before a hard link": b"".join(
        (REGULAR, header("b", tarfile.LNKTYPE, link="c"), header("d", tarfile.REGTYPE, size=-512))
    ),
    "a sparse member that leads back, before a hard link": b"".join(
        (
            REGULAR,
            header("b", tarfile.LNKTYPE, link="c"),
            header("d", tarfile.GNUTYPE_SPARSE, size=-1024, tail=bytes(96) + b"\0" + b"%011o\0" % 1),
        )
    ),
    "a negative size in a pax header": b"".join(
        (
            header("x", tarfile.XHDTYPE, size=len(pax_record("size", "-1536"))),
            padded(pax_record("size", "-1536")),
            REGULAR,
        )
    ),
    "a member larger than any file": header("a", tarfile.REGTYPE, size=2**80),
    "a name longer than any memory": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**62) + REGULAR,
    "a hard link to a directory": header("d", tarfile.DIRTYPE) + header("h", tarfile.LNKTYPE, link="d"),
    "a hard link to a link to itself": header("s", tarfile.SYMTYPE, link="s") + header("h", tarfile.LNKTYPE, link="s"),
    "a link to nothing": header("l", tarfile.SYMTYPE, link=""),
    "a member that lies too deep": b"".join(
        (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=3001), padded(b"d/" * 1500 + b"\0"), REGULAR)
    ),
    "a sparse member larger than the tar": header(
        "a",
        tarfile.GNUTYPE_SPARSE,
        size=0,
        tail=b"%011o\0%011o\0" % (1 << 20, 0) + bytes(72) + b"\0" + b"%011o\0" % (1 << 20),
    ),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_is_refused_with(place: Place, name: str) -> None:
    place.put(KEY, TARS[name] + END)
    assert_refused(place, loading(place, storage_format="tar", manifest=None))


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "d/" * 1500 + "a"])
def test_a_listing_is_refused_with(place: Place, path: str) -> None:
    place.store.lies[f"{KEY}/{path}"] = b"bad"
    assert_refused(place, loading(place, manifest=None))


@pytest.mark.parametrize(
    "key",
    [
        KEY.replace(".0", f".{DIGITS}"),
        KEY + "0" * 5000,
        KEY.replace("/Flow/", "/\ud800/"),
        KEY.replace("/Flow/", "/a\0b/"),
    ],
    ids=["a long attempt", "a long version", "no text", "a NUL"],
)
def test_a_key_is_refused_with(place: Place, key: str) -> None:
    assert_refused(place, lambda: restore.find_and_load(place.store, key, str(place.destination), CONFIG))


METADATA: dict[str, dict[str, Any]] = {
    "an attempt without end": {"attempt": float("inf")},
    "a version without end": {"version_id": float("inf")},
    "a key of many digits": {"key": KEY + "0" * 5000},
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_is_passed_over_with(place: Place, name: str) -> None:
    good = {"key": KEY, "pathspec": TASK.pathspec, "attempt": 0, "version_id": 0, "storage_format": "files"}
    bad = json.dumps({**good, **METADATA[name]}).encode()
    for key in (METADATA_KEY, f"{TASK.task_folder}/{layout.LATEST}", f"{TASK.task_folder}/0.mfchckpt.0.metadata"):
        place.put(key, bad)
    place.put(layout.begun_key(TASK.pathspec, 0), json.dumps({"keys": [KEY + "0" * 5000]}).encode())
    assert asyncio.run(catalog.newest_of_task(place.store, TASK, CONFIG)) is None
    assert asyncio.run(catalog.newest_of_step(place.store, TASK.scope_folder, CONFIG)) is None
    assert asyncio.run(catalog.list_references(place.store, TASK.task_folder, CONFIG)) == []
    assert_refused(place, lambda: restore.find_and_load(place.store, KEY, str(place.destination), CONFIG))

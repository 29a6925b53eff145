"""The journal survives whatever happens to its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_ckpt.errors import SpoolError
from async_ckpt.spool import journal
from async_ckpt.spool.journal import ADMITTED, COMMITTED, FAILED, HEADER, UPLOADED, Journal, Known, Reader
from async_ckpt.spool.unchanged import Fingerprint, StoredFile
from async_ckpt.stores.base import Multipart, Stored
from harness.files.filesystems import CannotMount, small_tmpfs

FINGERPRINT = Fingerprint(1, 2, 3, 4, 5)
LINES: list[dict[str, Any]] = [
    {"id": "0.a.0", "file": "weights", "crc32": [1, 2], "inode": FINGERPRINT},
    {"id": "0.a.0", "state": UPLOADED},
    {"id": "0.a.1", "file": "über\nmodel", "crc32": []},
    {"id": "0.a.0", "state": COMMITTED, "reference": {"key": "k", "attempt": 0}},
    {"id": "0.a.1", "parts": "other", "upload": "u", "part_bytes": 5},
    {"id": "0.a.1", "part": 2, "of": "other", "etag": "e", "crc32": [7]},
    {"id": "0.a.1", "state": FAILED, "why": "the store refused"},
]


def written(path: Path, lines: list[dict[str, Any]] = LINES) -> bytes:
    made = Journal(str(path))
    for line in lines:
        made.append(line)
    made.close()
    return path.read_bytes()


def states(path: Path) -> dict[str, str]:
    return {identity: item.state for identity, item in journal.read(str(path)).items()}


def test_what_was_appended_is_read_back_by_anybody(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    known = journal.read(str(tmp_path / "journal"))
    assert {identity: item.state for identity, item in known.items()} == {"0.a.0": COMMITTED, "0.a.1": FAILED}
    assert known["0.a.0"].reference == {"key": "k", "attempt": 0}
    assert known["0.a.1"].why == "the store refused"


def test_a_journal_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert journal.read(str(tmp_path / "journal")) == {}


def test_a_finished_file_is_known_until_its_checkpoint_is_uploaded(tmp_path: Path) -> None:
    written(tmp_path / "journal", LINES[:1])
    assert journal.read(str(tmp_path / "journal"))["0.a.0"].files == {"weights": Stored([1, 2])}
    reopened = Journal(str(tmp_path / "journal"))
    assert reopened.checkpoints["0.a.0"].files == {"weights": Stored([1, 2])}
    assert reopened.checkpoints["0.a.0"].state == ADMITTED
    reopened.append(LINES[1])
    reopened.append(LINES[3])
    reopened.close()
    assert journal.read(str(tmp_path / "journal"))["0.a.0"].files == {}


def test_a_file_of_a_committed_checkpoint_is_known_by_its_inode_across_restarts(tmp_path: Path) -> None:
    made = Journal(str(tmp_path / "journal"))
    for line in LINES[:2]:
        made.append(line)
        assert made.stored.find(FINGERPRINT) is None, "it is not committed yet"
        made.close()
        made = Journal(str(tmp_path / "journal"))
    made.append(LINES[3])
    for attempt in (0, 0, 1, 2):
        assert made.stored.find(FINGERPRINT) == StoredFile("k/weights", Stored([1, 2]))
        made.close()
        made = Journal(str(tmp_path / "journal"), attempt)
    made.close()


def test_what_failed_is_nobodys_source(tmp_path: Path) -> None:
    written(tmp_path / "journal", [LINES[0], {"id": "0.a.0", "state": FAILED, "why": "no"}])
    reopened = Journal(str(tmp_path / "journal"))
    reopened.append(LINES[3])
    reopened.close()
    assert reopened.stored.find(FINGERPRINT) is None


def test_parts_are_known_across_restarts_until_their_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, LINES[4:6])
    for _ in range(2):
        reopened = Journal(str(path))
        reopened.close()
        assert reopened.checkpoints["0.a.1"].parts == {"other": Multipart("u", 5, {2: Stored([7], (), "e")})}
    again = Journal(str(path))
    again.append({"id": "0.a.1", "parts": "other", "upload": "new", "part_bytes": 6})
    assert again.checkpoints["0.a.1"].parts == {"other": Multipart("new", 6)}
    again.append({"id": "0.a.1", "file": "other", "crc32": [7]})
    again.close()
    assert journal.read(str(path))["0.a.1"].parts == {}


@pytest.mark.parametrize("state", [UPLOADED, FAILED, COMMITTED])
def test_parts_are_forgotten_with_their_checkpoint(tmp_path: Path, state: str) -> None:
    written(tmp_path / "journal", [*LINES[4:6], {"id": "0.a.1", "state": state, "reference": {"key": "k"}}])
    assert journal.read(str(tmp_path / "journal"))["0.a.1"].parts == {}
    assert b"parts" not in written(tmp_path / "journal", [])


def test_of_earlier_attempts_only_the_newest_commit_is_kept_and_those_whose_records_are_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for attempt in range(2):
        for version in range(3):
            commit = {"id": f"{attempt}.a.{version}", "state": COMMITTED, "reference": {"key": f"{attempt}{version}"}}
            written(path, [commit])
    Journal(str(path), 1, keep={"0.a.1", "0.a.7"}).close()
    assert list(states(path)) == ["0.a.1", "0.a.2", "1.a.0", "1.a.1", "1.a.2"]
    Journal(str(path), 2).close()
    assert list(states(path)) == ["1.a.2"]
    assert journal.read(str(path))["1.a.2"].reference == {"key": "12"}


def test_a_reader_sees_what_is_new_and_what_was_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    reader = Reader(str(path))
    assert reader.look() == {}
    made = Journal(str(path))
    for count, line in enumerate(LINES, 1):
        made.append(line)
        seen = reader.look()
        whole = Known()
        for earlier in LINES[:count]:
            whole.apply(earlier)
        assert seen == whole.checkpoints
    with path.open("ab") as file:
        file.write(b"deadbeef {half a rec")
        file.flush()
        assert reader.look() == whole.checkpoints
    made.close()
    written(path, [{"id": "0.a.9", "state": UPLOADED}])
    assert {identity: item.state for identity, item in reader.look().items()} == {
        "0.a.0": COMMITTED, "0.a.1": FAILED, "0.a.9": UPLOADED,
    }  # fmt: skip
    last = dict(reader.look())
    path.unlink()
    assert reader.look() == last, "its agent is about to write it anew"


def test_cut_at_every_byte_it_replays_the_lines_before_the_cut_and_goes_on(tmp_path: Path) -> None:
    data = written(tmp_path / "whole")
    lines = data.splitlines(keepends=True)
    path = tmp_path / "journal"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        complete, end = [], len(HEADER)
        for text, line in zip(lines[1:], LINES, strict=True):
            end += len(text)
            if end <= cut:
                complete.append(line)
        known = Known()
        for line in complete:
            known.apply(line)
        expected = {identity: item.state for identity, item in known.checkpoints.items()}
        assert states(path) == expected
        reopened = Journal(str(path))
        assert {identity: item.state for identity, item in reopened.checkpoints.items()} == expected
        reopened.append({"id": "0.a.9", "state": COMMITTED})
        reopened.close()
        assert states(path) == {**expected, "0.a.9": COMMITTED}
        assert len(os.listdir(tmp_path)) == 2, "nothing was set aside"


def test_a_torn_tail_is_cut_off_and_said(tmp_path: Path) -> None:
    data = written(tmp_path / "journal")
    (tmp_path / "journal").write_bytes(data + b"deadbeef {half a rec")
    reopened = Journal(str(tmp_path / "journal"))
    reopened.close()
    assert len(reopened.warnings) == 1
    assert "20 bytes" in reopened.warnings[0]
    assert b"deadbeef" not in (tmp_path / "journal").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_changed_byte_never_invents_a_state(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    content = bytearray(written(path))
    at = data.draw(st.integers(len(HEADER), len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    found = Known()
    good = journal.replay(bytes(content), found)
    assert good <= at + 1
    expected = Known()
    for line in LINES[: bytes(content[:good]).count(b"\n") - 1]:
        expected.apply(line)
    assert found.checkpoints == expected.checkpoints


@pytest.mark.parametrize("foreign", [b"\x7fELF\0\0", b"async_ckpt journal 2\n", b"{}\n", b"\n"])
def test_a_foreign_file_is_set_aside_unchanged_with_a_warning(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(foreign)
    made = Journal(str(path))
    made.append(LINES[6])
    made.close()
    (aside,) = tmp_path.glob("journal.foreign-*")
    assert aside.read_bytes() == foreign
    assert len(made.warnings) == 1
    assert aside.name in made.warnings[0]
    assert states(path) == {"0.a.1": FAILED}


def test_a_second_foreign_file_does_not_replace_the_first(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        Journal(str(path)).close()
    assert {path.read_bytes() for path in tmp_path.glob("*.foreign-*")} == {b"one", b"two"}


def test_opening_again_keeps_what_is_known_and_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    before = states(path)
    Journal(str(path)).close()
    size = path.stat().st_size
    for _ in range(3):
        Journal(str(path)).close()
    assert states(path) == before
    assert journal.read(str(path))["0.a.0"].reference == {"key": "k", "attempt": 0}
    assert path.stat().st_size == size


def test_a_record_that_does_not_fit_on_the_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    try:
        with small_tmpfs(tmp_path, 64 << 10) as folder:
            made = Journal(str(folder / "journal"))
            made.append(LINES[1])
            before = (folder / "journal").read_bytes()
            with pytest.raises(SpoolError, match="No space left") as caught:
                made.append({"id": "0.a.2", "state": FAILED, "why": "x" * (128 << 10)})
            assert caught.value.where == str(folder / "journal")
            assert (folder / "journal").read_bytes() == before
            made.append(LINES[6])
            made.close()
            assert states(folder / "journal") == {"0.a.0": UPLOADED, "0.a.1": FAILED}
    except CannotMount as error:
        pytest.skip(str(error))


def test_a_journal_in_a_directory_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="journal cannot be opened"):
        Journal(str(tmp_path / "gone" / "journal"))


def test_that_all_was_uploaded_is_known_whatever_became_of_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, [{"id": "0.a.0", "state": UPLOADED}, {"id": "0.a.0", "state": FAILED, "why": "refused"}])
    for _ in range(2):
        made = Journal(str(path), attempt=1)
        item = made.checkpoints["0.a.0"]
        assert (item.state, item.why, item.uploaded) == (FAILED, "refused", True)
        made.close()
    written(path, [{"id": "0.a.1", "state": FAILED, "why": "torn"}])
    assert not journal.read(str(path))["0.a.1"].uploaded


def test_of_an_earlier_attempt_the_newest_commit_stays_known_and_the_newest_that_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    commits = [
        {"id": f"0.a.{version}", "state": COMMITTED, "reference": {"key": f"{version}", "latest": latest}}
        for version, latest in enumerate([True, True, False, False])
    ]
    written(path, commits)
    Journal(str(path), attempt=1).close()
    assert sorted(journal.read(str(path))) == ["0.a.1", "0.a.3"]

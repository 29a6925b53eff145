"""What is handed out is a dict with attributes, and needs nothing of this package where something keeps it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest

from async_ckpt.task.progress import format_bytes, progress_line
from async_ckpt.task.reference import CheckpointInfo, LoadedInfo, Reference

DATA = {"key": "a/b", "attempt": 1, "name": "mfchckpt", "version_id": 7, "metadata": {"loss": 0.5}, "size": 3}


class Known:
    """A tracker that knows one state."""

    def __init__(self, state: str, why: str = "") -> None:
        self._answer = (state, why)
        self.asked: list[Any] = []

    def state(self, identity: str) -> tuple[str, str]:
        self.asked.append(identity)
        return self._answer

    def wait(self, identity: str, timeout_s: float | None = None) -> None:
        self.asked.append((identity, timeout_s))


def test_it_is_a_dict_with_the_fields_of_the_metadata() -> None:
    reference = Reference(DATA, Known("ADMITTED"))
    assert isinstance(reference, dict)
    assert reference == DATA
    assert reference["metadata"]["loss"] == 0.5


#: What flows do with a reference that an earlier step kept, in an interpreter that has the standard library alone.
_ELSEWHERE = """
import copy, json, pickle, sys
r = pickle.load(sys.stdin.buffer)
assert "async_ckpt" not in sys.modules
assert isinstance(r, dict) and r == json.loads(sys.argv[1]) == json.loads(json.dumps(r))
for kept in (r, copy.copy(r), copy.deepcopy(r), pickle.loads(pickle.dumps(r))):
    assert type(kept.to_dict()) is dict and kept.to_dict() == r == dict(kept)
    assert (kept.key, kept.name, kept.attempt, kept.version_id, kept.size) == ("a/b", "mfchckpt", 1, 7, 3)
    assert kept.metadata["loss"] == 0.5 and kept.metadata is kept["metadata"]
    assert kept.pathspec is kept.url is kept.created_on is kept.storage_format is None
    assert sorted(kept.keys()) == sorted(r) and kept.extra == "more" and kept["items"] == "of a dict"
print("as expected")
"""

KINDS = [lambda data: Reference(data, Known("ADMITTED")), CheckpointInfo, LoadedInfo]
NAMES = ["saved", "listed", "loaded"]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_metaflow_checkpoint_takes_it_for_a_dict(kind: Any) -> None:
    """Its load_model asks for the exact type, and does nothing for any other."""
    made = kind(DATA)
    assert type(made) == dict  # noqa: E721
    assert type(made) != OrderedDict  # noqa: E721
    assert type(made) in {type(made)}


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("keep", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_what_was_saved_or_listed_is_a_plain_dict_where_it_is_kept(keep: Any, kind: Any) -> None:
    made = kind(DATA)
    kept = keep(made)
    assert kept == DATA
    assert type(kept) is dict
    kept["key"] = "c"
    assert made == DATA


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_kept_has_fields_and_attributes_and_needs_nothing_of_this_package(protocol: int, kind: Any) -> None:
    data = {**DATA, "extra": "more", "items": "of a dict", "no name": 1, "to_dict": "hidden"}
    pickled = pickle.dumps(kind(data), protocol)
    assert b"async_ckpt" not in pickled
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ELSEWHERE, json.dumps(data)], input=pickled, capture_output=True
    )
    assert done.stdout == b"as expected\n", done.stderr.decode()


def test_it_is_json() -> None:
    assert json.loads(json.dumps(Reference(DATA, Known("ADMITTED")))) == DATA


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_has_the_attributes_and_is_independent(make: Any, kind: Any) -> None:
    reference = kind(DATA)
    copied = make(reference)
    assert isinstance(copied, dict)
    assert copied == DATA
    assert copied.key == "a/b"
    copied["key"] = "c"
    assert copied.to_dict()["key"] == "c"
    if make is copy.deepcopy:
        copied["metadata"]["loss"] = 9
    assert reference == DATA
    assert reference.to_dict() == DATA


def test_fields_are_attributes_and_those_that_clients_read_are_always_there() -> None:
    info = CheckpointInfo({**DATA, "extra": "more"})
    assert [info.key, info.extra, info.metadata] == ["a/b", "more", {"loss": 0.5}]
    assert info.url is info.created_on is None
    with pytest.raises(AttributeError, match="'neither'"):
        info.neither  # noqa: B018
    assert type(info.to_dict()) is dict


@pytest.mark.parametrize(
    ("state", "done"),
    [("ADMITTED", False), ("UPLOADING", False), ("UPLOADED", False), ("COMMITTED", True), ("FAILED", True)],
)
def test_it_knows_how_far_it_has_come(state: str, done: bool) -> None:
    tracker = Known(state, "the store refused")
    reference = Reference(DATA, tracker)
    assert reference.state == state
    assert reference.done() is done
    assert reference.error == ("the store refused" if state == "FAILED" else None)
    assert set(tracker.asked) == {"1.mfchckpt.7"}


def test_waiting_returns_the_reference_itself() -> None:
    tracker = Known("COMMITTED")
    reference = Reference(DATA, tracker)
    assert reference.wait(3) is reference
    assert tracker.asked == [("1.mfchckpt.7", 3)]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1288490189, "1.2 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_the_progress_line_says_how_much_how_fast_and_how_long() -> None:
    line = progress_line({"pending": 3, "pending_bytes": 1240 << 20, "bytes_per_s": 310e6})
    assert line == "left: 3 checkpoints, 1.2 GiB, 310 MB/s, 4 s"
    assert "waiting for the store" in progress_line({"pending": 1, "pending_bytes": 1, "bytes_per_s": 0})


def test_an_entry_of_a_list_is_equal_to_what_was_saved_whatever_its_state() -> None:
    saved = Reference({"key": "k", "size": 1}, Known("ADMITTED"))
    entry = CheckpointInfo({"key": "k", "size": 1, "state": "COMMITTED"})
    assert saved == entry
    assert saved in [entry]
    assert entry == {"key": "k", "size": 1}
    assert (saved != entry) is False
    assert saved != {**entry, "size": 2}
    assert entry != {"key": "k"}
    assert entry != ["key", "size"]

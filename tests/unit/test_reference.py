"""What ``save()`` returns is a plain dict to everybody who only reads it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest

from async_ckpt.reference import Reference, format_bytes, progress_line

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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_its_pickle_needs_nothing_of_this_package(protocol: int) -> None:
    data = pickle.dumps(Reference(DATA, Known("ADMITTED")), protocol)
    assert b"async_ckpt" not in data
    code = "import pickle, sys; r = pickle.load(sys.stdin.buffer); assert type(r) is dict, type(r); print(r['key'])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout == b"a/b\n"


def test_it_is_json() -> None:
    assert json.loads(json.dumps(Reference(DATA, Known("ADMITTED")))) == DATA


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, dict])
def test_a_copy_is_a_plain_dict(make: Any) -> None:
    reference = Reference(DATA, Known("ADMITTED"))
    copied = make(reference)
    assert type(copied) is dict
    assert copied == DATA
    if make is copy.deepcopy:
        copied["metadata"]["loss"] = 9
        assert reference["metadata"]["loss"] == 0.5


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

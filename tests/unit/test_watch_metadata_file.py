"""What a watch keeps of the JSON file that a trainer writes into each checkpoint."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.watch import metadata_file

MOST = 16 << 10


@pytest.mark.parametrize(
    ("content", "kept", "left_out"),
    [
        ({"step": 3, "loss": 0.5, "best": None, "done": True, "path": "out"}, "all", []),
        ({"log_history": [{"step": 1}, {"step": 2, "loss": 0.5}]}, {"log_history": {"step": 2, "loss": 0.5}},
         ["log_history before its last entry"]),
        ({"log_history": [{"step": 1, "gradients": {"max": 1}, "rates": [1]}]}, {"log_history": {"step": 1}},
         ["log_history.gradients", "log_history.rates"]),
        ({"step": 1, "callbacks": {"a": {"b": 1}}, "rates": [1, 2], "none": []}, {"step": 1},
         ["callbacks", "rates", "none"]),
        ({"mixed": [{"step": 1}, 2]}, {}, ["mixed"]),
        ({"step": 1, "text": "x" * 1001}, {"step": 1}, ["text"]),
        ([{"step": 1}, {"step": 2, "more": [{"a": 1}]}], {"step": 2}, ["all before its last entry", "more"]),
        ([1, 2], {}, ["everything, since it is no object"]),
        ("text", {}, ["everything, since it is no object"]),
        ({}, {}, []),
    ],
)  # fmt: skip
def test_single_values_and_the_last_entry_of_a_history_are_kept_and_nothing_else(
    content: Any, kept: Any, left_out: list[str]
) -> None:
    assert metadata_file.summarize(content, MOST) == (content if kept == "all" else kept, left_out)


@pytest.mark.parametrize(
    "content",
    [
        {f"loss {number}": 0.1 for number in range(50_000)},
        {f"text {number}": "x" * 1000 for number in range(2000)},
        {"k" * 2_000_000: 1},
        {"log_history": [{f"loss {number}": 0.1 for number in range(50_000)}]},
    ],
)
def test_a_file_of_2_mb_makes_no_large_metadata(content: dict[str, Any]) -> None:
    kept, left_out = metadata_file.summarize({"step": 7, **content}, MOST)
    assert kept["step"] == 7
    assert len(json.dumps(kept)) < 2 * MOST
    assert left_out


def test_the_keys_that_are_left_out_are_named_in_one_line(tmp_path: Path) -> None:
    state = {"step": 7, "log_history": [{"loss": 1.0}, {"loss": 0.5}], **{f"nested {n}": {"a": 1} for n in range(20)}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    kept, (note,) = metadata_file.read(str(tmp_path / "state.json"), "state.json", Config())
    assert kept == {"step": 7, "log_history": {"loss": 0.5}}
    assert "Of state.json, single values and the last entry of each history are kept" in note.line
    assert "left out: log_history before its last entry, nested 0, nested 1" in note.line
    assert "and 11 more" in note.line


def test_nan_is_kept_as_a_number(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"loss": NaN}')
    kept, notes = metadata_file.read(str(tmp_path / "state.json"), "state.json", Config())
    assert math.isnan(kept["loss"])
    assert notes == []


def test_a_file_that_is_huge_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"text": "x" * 2000}))
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        metadata_file.read(str(tmp_path / "state.json"), "state.json", Config(metadata_file_bytes=1000))


def test_a_pipe_in_its_place_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(ValueError, match="Expecting value"):
        metadata_file.read(str(tmp_path / "state.json"), "state.json", Config())

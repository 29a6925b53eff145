"""Names, keys and metadata: what is accepted, what is refused and how the refusal reads."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_ckpt import layout
from async_ckpt.errors import UsageError
from harness.tasks.task import TASK

GOOD_NAMES = st.text(min_size=1, max_size=40).filter(
    lambda text: text.isprintable() and "/" not in text and len(text.encode()) <= 200
)


@settings(deadline=None)
@given(GOOD_NAMES, st.integers(0, 10**9), st.integers(0, 99))
def test_a_key_comes_apart_into_what_it_was_made_of(name: str, version: int, attempt: int) -> None:
    assert layout.check_name(name) == name
    key = TASK.key(name, version, attempt=attempt)
    parts = layout.parse_key(key)
    assert (parts.flow, parts.step, parts.name, parts.version, parts.attempt) == (
        "Flow",
        "train",
        name,
        version,
        attempt,
    )
    assert (parts.pathspec_hash, parts.scope, parts.identifier) == (TASK.pathspec_hash, TASK.scope, TASK.identifier)
    for metadata in (parts.metadata_key, parts.task_metadata_key(TASK.pathspec)):
        folder, _, file = metadata.rpartition("/")
        assert layout.metadata_name_parts(folder, file) == (attempt, name, version)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "the empty name"),
        ("a/b", "'/' would be a folder"),
        ("/", "'/' would be a folder"),
        ("../a", "'/' would be a folder"),
        ("a\nb", r"'\\n' breaks its key"),
        ("a\r", r"'\\r' breaks its key"),
        ("a\0b", r"'\\x00' breaks its key"),
        ("\x7f", r"'\\x7f' breaks its key"),
        ("a\x85b", r"'\\x85' breaks its key"),
        ("a\u2028b", r"'\\u2028' breaks its key"),
        ("\udcff", r"'\\udcff' breaks its key"),
        ("\uffff", r"'\\uffff' breaks its key"),
        ("x" * 300, "300 bytes of UTF-8, and 200 are the most"),
        ("ü" * 101, "202 bytes of UTF-8"),
        (b"x", "it is no text"),
        (["x"], "it is no text"),
    ],
)
def test_a_name_that_no_key_can_have_is_refused_with_the_reason(name: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        layout.check_name(name)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        *[
            (text, text)
            for text in ("mfchckpt", "epoch 3", "über-模型", "a,b:c=d", "a\\b", "x" * 200, "👨\u200d👩\u200d👧")
        ],
        *[
            (text, text)
            for text in ("epoch=3-val_loss=0.25", "run.1", "Qwen2.5-7B", ".", "..", ".a.", "1.2.3", "a.metadata")
        ],
        (None, "mfchckpt"),
        (3, "3"),
        (0.25, "0.25"),
        (np.int64(7), "7"),
        (pathlib.PurePosixPath("best"), "best"),
    ],
)
def test_what_the_incumbent_takes_for_a_name_is_one(name: Any, stored: str) -> None:
    assert layout.check_name(name) == stored


@pytest.mark.parametrize("name", ["1.2", "12345678.0.a", "run.1", "0.0.0", "a.metadata"])
def test_metadata_of_a_name_with_dots_is_read_right_in_both_folders(name: str) -> None:
    # All digits: the hash before the attempt could be taken for one, and the attempt for a part of the name.
    task = dataclasses.replace(TASK, attempt=4)
    for pathspec_hash in (task.pathspec_hash, "12345678"):
        parts = layout.parse_key(task.key(name, 9).replace(task.pathspec_hash, pathspec_hash))
        for key in (parts.metadata_key, parts.task_metadata_key(task.pathspec)):
            folder, _, file = key.rpartition("/")
            assert layout.metadata_name_parts(folder, file) == (4, name, 9)


def test_a_key_under_another_root_leads_to_metadata_under_that_root() -> None:
    parts = layout.parse_key(TASK.key("a.b", 1).replace("mf.checkpoints", "mf.huggingface_hub"))
    assert parts.name == "a.b"
    for key in (parts.metadata_key, parts.manifest_key, parts.task_metadata_key(TASK.pathspec)):
        assert key.startswith("mf.huggingface_hub/checkpoints/")


GOOD_KEY = TASK.key("mfchckpt", 0)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "..",
        "/" + GOOD_KEY,
        GOOD_KEY + "/file",
        GOOD_KEY + "/",
        GOOD_KEY + "\n",
        GOOD_KEY.replace("/Flow/", "/../"),
        GOOD_KEY.replace("/Flow/", "/./"),
        GOOD_KEY.replace("/train/", "/../"),
        GOOD_KEY.replace(TASK.scope, ".."),
        GOOD_KEY.replace("/Flow/", "//"),
        GOOD_KEY.replace("artifacts", "metadata"),
        GOOD_KEY.replace(".0.mfchckpt", ".x.mfchckpt"),
        GOOD_KEY.replace("mfchckpt.0", "mfchckpt"),
        GOOD_KEY.replace("mfchckpt.0", "mfchckpt.-1"),
        "s3://bucket/" + GOOD_KEY,
        None,
        3,
        GOOD_KEY.encode(),
    ],
)
def test_what_is_no_key_is_refused_and_shown(key: Any) -> None:
    with pytest.raises(UsageError, match="not the key of a checkpoint") as caught:
        layout.parse_key(key)
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize(
    "pathspec", ["", "Flow", "Flow/1/train", "Flow/1/train/2/3", "Flow/../train/2", "Flow//train/2"]
)
def test_what_is_no_pathspec_of_a_task_is_refused(pathspec: str) -> None:
    with pytest.raises(UsageError, match="flow/run/step/task"):
        layout.metadata_folder(pathspec)


@pytest.mark.parametrize(
    "name", ["latest", ".metadata", "a.b.metadata", "0.x.1.json", "x.0.n.metadata", "0.x.a.metadata", "x.0.1.metadata"]
)
def test_other_objects_beside_the_metadata_are_not_taken_for_it(name: str) -> None:
    assert layout.metadata_name_parts(TASK.scope_folder, name) is None
    assert layout.metadata_name_parts(TASK.task_folder, name) is None


def test_foreach_values_that_are_not_json_give_the_same_identifier_every_time() -> None:
    class Value:
        pass

    assert layout.foreach_identifier([(0, Value())]) == layout.foreach_identifier([(0, Value())])
    assert layout.foreach_identifier([(0, Value())]) != layout.foreach_identifier([(1, Value())])
    assert layout.foreach_identifier([(0, 1)]) != layout.foreach_identifier([(0, 2)])
    assert layout.foreach_identifier([(0, 0.1)]) != layout.foreach_identifier([(0, "0.1")])
    # The place does not matter, so that a split finds its like in a run with more of them.
    assert layout.foreach_identifier([(0, "a")]) == layout.foreach_identifier([(1, "a")])
    assert layout.foreach_identifier([(0, 1), (0, 2)]) != layout.foreach_identifier([(0, 2), (0, 1)])


def test_all_ranks_of_a_gang_have_one_identifier() -> None:
    identifiers = {layout.foreach_identifier([(0, "a"), (rank, rank)], gang=True) for rank in range(4)}
    assert len(identifiers) == 1
    assert identifiers != {layout.foreach_identifier([(0, "b"), (0, 0)], gang=True)}


def test_checkpoints_of_a_task_are_ordered_by_attempt_then_version_as_numbers() -> None:
    references = [
        {"attempt": "1", "version_id": 2},
        {"attempt": 0, "version_id": 10},
        {"attempt": 1, "version_id": 10},
        {},
    ]
    assert sorted(map(layout.order, references)) == [(0, 0), (0, 10), (1, 2), (1, 10)]

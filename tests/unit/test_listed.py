"""What a notebook and a terminal show of a list of checkpoints."""

from __future__ import annotations

import pickle
from typing import Any

from async_ckpt.task.listed import CheckpointList, columns_of, row
from async_ckpt.task.reference import CheckpointInfo


def info(number: int, **metadata: Any) -> CheckpointInfo:
    return CheckpointInfo(
        {"key": f"k{number}", "name": "model", "version_id": number, "pathspec": "F/1/s/2", "attempt": 0, "size": 2048,
         "created_at": "2026-11-30T10:00:00+00:00", "metadata": metadata},
        state="COMMITTED",
    )  # fmt: skip


def test_a_notebook_shows_a_table() -> None:
    shown = CheckpointList([info(1, loss=0.123456789), info(2, loss=1)])._repr_html_()
    assert shown.count("<tr>") == 3
    assert "<th>loss</th>" in shown
    assert "<td>0.123457</td>" in shown
    assert "<td>2.0 KiB</td>" in shown


def test_texts_of_others_stay_texts() -> None:
    hostile = "<script>alert(1)</script>\u202e" + "x" * 10_000
    shown = CheckpointList([info(1, **{hostile: hostile})])._repr_html_()
    assert "<script>" not in shown
    assert "\u202e" not in shown
    assert len(shown) < 3_000


def test_a_long_list_is_cut_and_says_so() -> None:
    shown = CheckpointList(info(number) for number in range(1_000))._repr_html_()
    assert shown.count("<tr>") == 101
    assert "and 900 more" in shown


def test_kept_as_an_artifact_it_is_a_plain_list() -> None:
    kept = pickle.loads(pickle.dumps(CheckpointList([info(1)])))
    assert (type(kept), type(kept[0])) == (list, dict)


def test_columns_are_single_values_and_few() -> None:
    assert columns_of([info(1, a=1, b={"c": 2}, d=[1]), info(2, e="x"), {"metadata": None}]) == ["a", "e"]
    assert len(columns_of([info(1, **{str(number): number for number in range(100)})])) == 8


def test_what_others_wrote_may_lack_anything() -> None:
    assert row({"key": "k"}, ["loss"])[:6] == ["", "", "", "", "", ""]


def test_what_they_were_chosen_by_comes_first() -> None:
    many = {str(number): number for number in range(20)}
    found = CheckpointList([info(1, **many, val={"loss": 0.5})], ["val.loss", "19", "size"])
    assert found.columns()[:3] == ["val.loss", "19", "0"]
    assert row(found[0], found.columns())[-8:-6] == ["0.5", "19"]

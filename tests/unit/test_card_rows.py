"""What the card is to show of each checkpoint, from its metadata to the log in the spool and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.card.page import data_of, page
from async_ckpt.card.rows import NAME, Log, Rows, metrics_of, rows_of, table
from async_ckpt.config import CARD_METRICS, CARD_TEXT


@pytest.mark.parametrize(
    ("metadata", "metrics"),
    [
        ({"loss": 0.5, "epoch": 3}, {"loss": 0.5, "epoch": 3.0}),
        ({"loss": math.nan, "best": math.inf, "acc": 1}, {"acc": 1.0}),
        ({"loss": "0.5", "done": True, "none": None, "list": [1, 2]}, {}),
        ({"val": {"loss": 0.25, "by": {"class": 1}}}, {"val.loss": 0.25, "val.by.class": 1.0}),
        ({"huge": 10**400, "ok": 1}, {"ok": 1.0}),
        ({"a\u202eb": 1}, {"a\\u202eb": 1.0}),
        ({"x" * 10_000: 1}, {"x" * (CARD_TEXT - 1) + "…": 1.0}),
        ("no dict", {}),
        (None, {}),
        ({str(number): number for number in range(1000)}, {str(number): number for number in range(CARD_METRICS)}),
    ],
)
def test_numbers_of_metadata_can_be_drawn(metadata: Any, metrics: dict[str, float]) -> None:
    assert metrics_of(metadata) == metrics


def test_rows_are_read_on_from_where_they_were(tmp_path: Path) -> None:
    log, rows = Log(str(tmp_path)), Rows(str(tmp_path))
    assert rows.read_on() == set()
    log.append([{"id": "a", "size": 5, "state": "ADMITTED"}, {"id": "b", "metrics": {"loss": 1.0}}])
    assert rows.read_on() == {"a", "b"}
    assert rows.read_on() == set()
    log.append([{"id": "a", "state": "COMMITTED"}])
    assert rows.read_on() == {"a"}
    assert rows.all == {"a": {"id": "a", "size": 5, "state": "COMMITTED"}, "b": {"id": "b", "metrics": {"loss": 1.0}}}
    assert rows.metrics() == ["loss"]


def test_lines_that_are_torn_or_no_rows_hide_no_others(tmp_path: Path) -> None:
    log, rows = Log(str(tmp_path)), Rows(str(tmp_path))
    log.append([{"id": "a"}])
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'{"id": "torn')
    assert rows.read_on() == {"a"}
    log.append([{"id": "b"}])
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'[1]\n{"id": 3}\n\xff\n')
    log.append([{"id": "c"}])
    assert rows.read_on() == {"b", "c"}


def test_a_log_that_was_removed_begins_anew_and_what_is_known_stays(tmp_path: Path) -> None:
    log, rows = Log(str(tmp_path)), Rows(str(tmp_path))
    log.append([{"id": "a"}])
    rows.read_on()
    (tmp_path / NAME).unlink()
    (tmp_path / "in its place").touch()
    log.append([{"id": "b"}])
    assert rows.read_on() == {"b"}
    assert list(rows.all) == ["a", "b"]


def test_a_table_is_read_back() -> None:
    saved = {"name": "model", "saved_at": 3.0}
    rows = [{"id": "a", **saved, "size": 5, "metrics": {"loss": 1.0}}, {"id": "b", **saved, "why": "x"}]
    found = rows_of(json.loads(json.dumps(table(rows, ["loss", "acc"]))))
    told = [{name: value for name, value in row.items() if value is not None and name != "metrics"} for row in found]
    assert told == [{"id": "a", **saved, "size": 5}, {"id": "b", **saved, "why": "x"}]
    assert [row["metrics"] for row in found] == [{"loss": 1.0, "acc": None}, {"loss": None, "acc": None}]


def test_what_is_not_known_to_be_saved_is_left_out() -> None:
    """The disk was full when its save was to be written down."""
    assert table([{"id": "a", "state": "COMMITTED", "durable_s": 1.0}], [])["rows"] == []


def test_texts_of_others_stay_data_in_the_page() -> None:
    hostile = "</script><script>alert(1)</script>[CARD_DATA][UPLOT_JS]\u2028<!--"
    text = page({"errors": [hostile]}, "token")
    assert data_of(text) == {"errors": [hostile]}
    assert text.count("</script>") == page({"errors": []}, "token").count("</script>")
    assert 'METAFLOW_RELOAD_TOKEN = "token"' in text
    assert "[" + "CARD_JS]" not in text


def test_a_page_loads_nothing_from_elsewhere() -> None:
    text = page({}, "token")
    assert "src=" not in text.replace("data-src=", "")
    assert "@import" not in text
    assert "url(" not in text

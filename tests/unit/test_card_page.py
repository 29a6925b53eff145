"""What the card looks like in a browser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.card.page import page
from harness.common.browser import Shown, shown
from harness.common.card_states import NOTHING_ON_ITS_WAY as NOTHING
from harness.common.card_states import STATES, data, row


@pytest.fixture
def look(tmp_path: Path) -> Any:
    def look(data: dict[str, Any], *updates: dict[str, Any]) -> Shown:
        import json

        scripts = "".join(
            f"<script>metaflow_card_update({json.dumps(update).replace('<', chr(92) + 'u003c')})</script>"
            for update in updates
        )
        path = tmp_path / "card.html"
        path.write_text(page(data, "token").replace("</body>", f"{scripts}</body>"), encoding="utf-8")
        return shown(path, tmp_path / "home")

    return look


def test_in_mid_flight_it_says_what_is_stored_what_is_on_its_way_and_what_would_be_lost(look: Any) -> None:
    found = look(data([row(1), row(2), row(3), row(4, "UPLOADING")]))
    assert "Checkpoints of Train/7/start/3" in found.text
    assert "Attempt 0 is running" in found.text
    assert "3 of 4" in found.text
    assert "5 min of work" in found.text
    assert "with the process alone: 12 s; only on this disk: 1 save" in found.text
    assert "360 MB of 1.0 GB, at 85.0 MB/s" in found.text
    assert "1 checkpoint is on the way, 640 MB to send; the next is in the store in about 40 s" in found.text
    assert [cells[:2] for cells in found.rows[1:]] == [
        ["model #4", "being sent"], ["model #3", "in the store"], ["model #2", "in the store"],
        ["model #1", "in the store"],
    ]  # fmt: skip


def test_an_update_changes_what_is_shown(look: Any) -> None:
    begun = data([row(1), row(2, "ADMITTED")])
    found = look(begun, data([row(2), row(3, "FAILED", why="Access denied")], "ended", now=NOTHING))
    assert "Attempt 0 has ended" in found.text
    assert "2 of 3" in found.text
    assert "Nothing is on the way" in found.text
    assert [cells[:2] for cells in found.rows[1:]] == [
        ["model #3", "failedAccess denied"], ["model #2", "in the store"], ["model #1", "in the store"],
    ]  # fmt: skip


def test_with_nothing_saved_it_says_what_was_loaded(look: Any) -> None:
    loaded = {
        "key": "k", "name": "model", "pathspec": "Train/6/start/2", "attempt": 1,
        "created_at": "2026-11-30T10:00:00.000000+00:00",
    }  # fmt: skip
    found = look(data([], loaded=loaded, now=NOTHING))
    assert "It began with model of Train/6/start/2, attempt 1, saved 2026-11-30 10:00:00 UTC." in found.text
    assert "It began without a checkpoint." in look(data([], now=NOTHING)).text


def test_metrics_are_drawn_and_gaps_do_no_harm(look: Any) -> None:
    rows = [row(number, metrics={"loss": 1 / number} if number != 3 else {}) for number in range(1, 6)]
    found = look(data(rows, metrics=["loss"], now=NOTHING))
    assert "Over the checkpoints" in found.text
    assert found.text.count("loss") >= 2
    assert found.rows[3][6] == ""
    assert found.rows[1][6] == "0.2"


def test_ten_thousand_checkpoints_are_shown_by_pages(look: Any) -> None:
    rows = [row(number, metrics={"loss": math.sin(number)}) for number in range(10_000)]
    found = look(data(rows, metrics=["loss"], now=NOTHING))
    assert "10,000 of 10,000" in found.text
    assert "1 to 50 of 10,000" in found.text
    assert len(found.rows) == 51
    assert found.rows[1][0] == "model #9999"


def test_hostile_texts_are_shown_as_texts(look: Any) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    found = look(
        data([row(1, name=hostile, why=hostile)], metrics=[hostile], errors=[hostile], now={**NOTHING, "pace": hostile})
    )
    assert found.text.count("<img") >= 3
    assert not [word for word in found.words if word == "owned"]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("start", ["It began with model of Train/6/start/2, attempt 1", "Nothing is on the way", "20 s of work"]),
        (
            "mid-flight",
            ["11 of 12", "120 MB of 310 MB, at 10.3 MB/s", "the next is in the store in about 18 s"],
        ),
        ("failure", ["has failed", "6 of 9", "failed: 3", "AccessDenied"]),
        ("end", ["Attempt 1 has ended", "22 of 22", "It began with model of attempt 0 of this task"]),
        ("many", ["10,000 of 10,000", "1 to 50 of 10,000"]),
        ("gang", ["Checkpoints of Gang/12/train/4", "A gang of 4", "11 of 12"]),
    ],
)
def test_in_each_state_it_says_what_people_look_for(look: Any, state: str, says: list[str]) -> None:
    found = look(STATES[state]())
    assert [words for words in says if words not in found.text] == []

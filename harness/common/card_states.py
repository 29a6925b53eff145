"""What cards show: the data of a page in each of the states in which people look at one."""

from __future__ import annotations

import math
from typing import Any

from async_ckpt.card.rows import Row, table

#: When the attempt began, in seconds since 1970.
AT = 1_796_040_000.0
_MB = 1_000_000
_EVERY_S = 300.0
NOTHING_ON_ITS_WAY = {"pending": 0, "pending_bytes": 0, "uploading": [], "saves": 0}


def row(number: int, state: str = "COMMITTED", **fields: Any) -> Row:
    """One checkpoint."""
    return {
        "id": f"0.model.{number}", "attempt": 0, "name": "model", "version": number, "size": _MB * number,
        "state": state, "saved_at": AT + 60 * number, "blocked_s": 0.0012, "began_s": 0.5, "uploaded_s": 2.5,
        "durable_s": 3.0 if state == "COMMITTED" else None, "sent": _MB * number // 2, "copied": 0, "why": "",
        **fields,
    }  # fmt: skip


def data(rows: list[Row], state: str = "running", metrics: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """A page."""
    now = {
        "machine_s": 312.0, "process_s": 12.0, "by_hand_s": 312.0, "saves": 1, "next_durable_s": 40.0,
        "next_durable_why": "", "rate": 85e6, "pace": "full speed", "pending": 1, "pending_bytes": 640 * _MB,
        "uploading": [{"name": "model", "version": 4, "done": 360 * _MB, "size": 1000 * _MB}],
    }  # fmt: skip
    return {
        "at": AT + 400, "state": state, "attempt": 0, "loaded": None, "now": {**now, **fields.pop("now", {})},
        "errors": [], "task": {"pathspec": "Train/7/start/3", "attempt": 0, "node": 0, "nodes": 1}, **fields,
        **table(rows, metrics or []),
    }  # fmt: skip


def training(count: int, *, every_s: float = _EVERY_S, attempt: int = 0, first: int = 0) -> list[Row]:
    """The checkpoints of a training that goes well, each with its loss, its accuracy and its epoch."""
    rows = []
    for number in range(first, first + count):
        share = number / max(first + count, 20)
        loss = 2.3 * math.exp(-4 * share) + 0.05 * math.sin(number * 1.7)
        seconds = 28 + 6 * math.sin(number)
        rows.append(
            row(
                number, id=f"{attempt}.model.{number}", attempt=attempt, size=1240 * _MB,
                sent=(1240 if number == first else 310) * _MB, saved_at=AT + every_s * number,
                blocked_s=0.0011 + 0.0004 * (number % 3), began_s=0.2, uploaded_s=seconds, durable_s=seconds + 0.4,
                metrics={"loss": loss, "accuracy": 1 - loss / 3, "epoch": float(number)},
            )
        )  # fmt: skip
    return rows


_METRICS = ["loss", "accuracy", "epoch"]


def _start() -> dict[str, Any]:
    return data(
        [], at=AT + 20, now={**NOTHING_ON_ITS_WAY, "machine_s": 20.0, "process_s": 20.0},
        loaded={
            "name": "model", "pathspec": "Train/6/start/2", "attempt": 1, "created_at": "2026-11-30T10:00:00+00:00",
        },
    )  # fmt: skip


def _mid_flight() -> dict[str, Any]:
    rows = training(12)
    rows[-1].update(state="UPLOADING", uploaded_s=None, durable_s=None, sent=120 * _MB)
    uploading = [{"name": "model", "version": 11, "done": 120 * _MB, "size": 310 * _MB}]
    pace = "10.3 MB/s are enough to be done when half of the 300 s until the next save are over"
    now = {"uploading": uploading, "pending_bytes": 190 * _MB, "rate": 10.3e6, "next_durable_s": 18.0, "pace": pace}
    return data(rows, metrics=_METRICS, at=AT + 11 * _EVERY_S + 12, now=now)


def _failure() -> dict[str, Any]:
    rows = training(9)
    why = "Cannot write s3://bucket/model: AccessDenied: Access Denied. Ask for the right to s3:PutObject"
    for each in rows[-3:]:
        each.update(state="FAILED", durable_s=None, uploaded_s=None, sent=0, why=why)
    return data(rows, "failed", _METRICS, at=AT + 9 * _EVERY_S, errors=[why], now=NOTHING_ON_ITS_WAY)


def _end() -> dict[str, Any]:
    rows = [*training(8), *training(14, attempt=1, first=8)]
    loaded = {"name": "model", "pathspec": "Train/7/start/3", "attempt": 0, "created_at": "2026-11-30T10:35:00+00:00"}
    data_ = data(rows, "ended", _METRICS, at=AT + 22 * _EVERY_S, loaded=loaded, now=NOTHING_ON_ITS_WAY)
    data_["task"]["attempt"] = 1
    return data_


def _many() -> dict[str, Any]:
    rows = training(10_000, every_s=6.0)
    return data(rows, metrics=_METRICS, at=AT + 60_000, now={**NOTHING_ON_ITS_WAY, "machine_s": 4.0, "process_s": 4.0})


def _gang() -> dict[str, Any]:
    found = _mid_flight()
    found["task"] = {"pathspec": "Gang/12/train/4", "attempt": 0, "node": 0, "nodes": 4}
    return found


STATES = {
    "start": _start, "mid-flight": _mid_flight, "failure": _failure, "end": _end, "many": _many, "gang": _gang,
}  # fmt: skip

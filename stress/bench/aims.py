"""What was aimed at, and whether the figures reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]

SAVE_P50_MS, SAVE_P99_MS, SAVE_FILES = 2.0, 10.0, 100
FLAT = 3.0
BLOCKED_P99_MS, BLOCKED_RATIO = 10.0, 1.3
PEER_RATIO, PEER_STORE, PEER_BYTES = 500, "s3", 1 << 30
START_MS, FLUSH_MS = 150.0, 50.0


@dataclass(frozen=True)
class Aim:
    """One line under a table. ``why``: what limits a miss."""

    text: str
    met: bool
    figures: str
    why: str = ""

    def __str__(self) -> str:
        verdict = "met" if self.met else "**missed**"
        why = f" {self.why}" if self.why and not self.met else ""
        return f"- {self.text}: {verdict} ({self.figures}).{why}"


_WHY_FILES = (
    "Only trees of many files are over it: every file costs its system calls (from 32 KiB on a link(2), an open and a "
    "lease, below that an open and a read), so the time grows with their number, not with their bytes."
)
_WHY_SLOW = (
    "Not traced call by call. Trainer, agent, upload and the store's server share two cores here, and a link or a "
    "rename waits for the file system's journal while gigabytes are being written back."
)


def of_blocked(rows: Rows) -> list[Aim]:
    """Aims for saves while the disk writes back; ``rows`` as recorded by ``stress.bench.blocked``."""
    saves = [row for row in rows if row["what"] == "save()"]
    calls = {row["case"]: row for row in rows if row["what"] == "all"}
    found = []
    for row in saves:
        if row["files"] == 1:
            text = f"p99 at most {BLOCKED_P99_MS:g} ms, {row['case']}"
            found.append(Aim(text, row["p99_ms"] <= BLOCKED_P99_MS, f"{row['p99_ms']:.1f} ms of {row['n']} saves"))
        else:
            ratio = row["p50_ms"] / calls[row["case"]]["p50_ms"]
            text = f"p50 at most {BLOCKED_RATIO:g} x the system calls, {row['case']}"
            found.append(Aim(text, ratio <= BLOCKED_RATIO, f"{ratio:.2f} x of {row['n']} saves"))
    return found


def of_save(rows: Rows) -> list[Aim]:
    """Aims for the time blocked in ``save()``; ``rows`` as recorded by ``stress.bench.save``."""
    mine = [row for row in rows if row["package"] == "ours"]
    few = [row for row in mine if row["files"] <= SAVE_FILES]
    found = [
        _limit("p50", "p50_ms", SAVE_P50_MS, few, _WHY_FILES),
        _limit("p99", "p99_ms", SAVE_P99_MS, few, _WHY_SLOW),
    ]
    for store in dict.fromkeys(row["store"] for row in mine):
        single = [row for row in mine if row["store"] == store and row["files"] == 1]
        single.sort(key=lambda row: int(row["bytes"]))
        if len(single) > 1:
            low, high = (pick(row["p50_ms"] for row in single) for pick in (min, max))
            sizes = f"p50 between {low:.2f} and {high:.2f} ms from {single[0]['case']} to {single[-1]['case']}"
            text = f"Flat in bytes on {store} (the slowest size takes at most {FLAT:g} x the fastest)"
            found.append(Aim(text, high <= FLAT * low, sizes))
    pair = [row for row in rows if row["store"] == PEER_STORE and row["files"] == 1 and row["bytes"] == PEER_BYTES]
    if len(pair) == 2:
        ratio = pair[1]["p50_ms"] / pair[0]["p50_ms"]
        text = f"At 1 GiB on S3 at least {PEER_RATIO} x less than the incumbent"
        counts = f"{pair[0]['n']} saves of ours, {pair[1]['n']} of the peer"
        found.append(Aim(text, ratio >= PEER_RATIO, f"{ratio:,.0f} x; {counts}"))
    return found


def _limit(label: str, key: str, limit: float, rows: Rows, why: str) -> Aim:
    text = f"{label} ≤ {limit:g} ms for up to {SAVE_FILES} files, whatever their size"
    over = [row for row in rows if row[key] > limit]
    if over:
        figures = "over it: " + "; ".join(f"{row['store']} {row['case']}: {row[key]:.1f} ms" for row in over)
    else:
        figures = f"at most {max(row[key] for row in rows):.2f} ms" if rows else "nothing measured"
    if any(row["files"] == 1 for row in over):
        why = _WHY_SLOW
    return Aim(text, bool(rows) and not over, figures, why)


def of_overhead(rows: Rows) -> list[Aim]:
    """Aims for what the decorator adds; ``rows`` as recorded by ``stress.bench.overhead``."""
    found = []
    for store in dict.fromkeys(row["store"] for row in rows):
        tasks = {row["task"]: row for row in rows if row["store"] == store}
        if not {"ours", "no @checkpoint"} <= tasks.keys():
            continue
        added = tasks["ours"]["to_code_ms"] - tasks["no @checkpoint"]["to_code_ms"]
        flush = tasks["ours"]["flush_ms"]
        found += [
            Aim(f"The start adds at most {START_MS:g} ms to a task ({store})", added <= START_MS, f"{added:.1f} ms"),
            Aim(f"An empty flush takes at most {FLUSH_MS:g} ms ({store})", flush <= FLUSH_MS, f"{flush:.2f} ms"),
        ]
    return found

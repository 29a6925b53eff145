"""What came of the rounds, and its table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness.kills.sums import Sums


@dataclass
class Figures(Sums):
    """Counts of one round, or of many. ``kills`` by (process, moment); ``unheard``: committed as well, of a task that
    was killed before ``save()`` could return; ``wrong``: a sentence for each violation.
    """

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    rounds: int = 0
    saves: int = 0
    committed: int = 0
    failed: int = 0
    unheard: int = 0
    missing: int = 0
    partial: int = 0
    out_of_order: int = 0
    other: int = 0
    looks: int = 0
    slowest_save_s: float = 0.0
    slowest_write_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def violation(self, kind: str, what: str) -> None:
        """Count something that must not be; ``kind`` is the field that counts it."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.wrong.append(f"{kind.replace('_', ' ')}: {what}")

    def row(self, victim: str, store: str) -> dict[str, Any]:
        """A line of the table."""
        return {
            "victim": victim, "store": store, "kills": self.kills.total(), "rounds": self.rounds,
            "saves": self.saves, "committed": self.committed, "failed and reported": self.failed,
            "unheard": self.unheard, "missing": self.missing, "partial": self.partial,
            "out of order": self.out_of_order, "other": self.other, "looks": self.looks,
            "slowest save_ms": round(self.slowest_save_s * 1000),
            "slowest write_ms": round(self.slowest_write_s * 1000),
        }  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows for a terminal."""
    columns = list(rows[0])
    texts = [[column.replace("_ms", ", ms") for column in columns], *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[index]) for line in texts) for index in range(len(columns))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in texts]

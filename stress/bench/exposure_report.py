"""What ``stress.exposure`` has recorded, as sections of BENCHMARKS.md."""

from __future__ import annotations

from typing import Any

from . import aims

Rows = list[dict[str, Any]]

EXPOSURE = """Tasks that save on a clock that stands still until it is told to go on, with agents that are killed,
retries, an unreachable or slow store, and wall clocks that are set. At a random moment `status()` is asked what would
be lost with the machine, and the machine is lost. What really was is seen from the store's content. *What nobody can
tell*: work that an attempt before had done in vain; time in which nothing was trained, between attempts and while a
save waits; and commits that are visible while the agent still waits for the store's answer."""
DUE = """A training asks `due("auto")` in each step, and fails as a generated trace says; *Weibull 0.7* are failures
that come in bursts. Goodput is the share of the time that is work which was not lost. The same trace is run with 17
fixed intervals, from a quarter to four times the expected best; *best fixed* is the one that turns out best afterwards.
*with 4 x the time between failures*: `due("auto")` that is told a wrong one, beside the same."""

#: How much of the goodput of the best fixed interval is aimed at.
_SHARE = 0.99


def of_exposure(rows: Rows) -> list[aims.Aim]:
    """Aims for what was said."""
    figures = {row[""]: row["figure"] for row in rows}
    less = figures["of these: more was lost than status() had said"]
    more = figures["more was said than lost by over an interval"]
    unexplained = figures["by over an interval and what nobody can tell"]
    count = f"{figures['machines lost']} machines"
    why = (
        f"{more - unexplained} of these are work done in vain, idle time, or a commit that the agent had not heard of."
    )
    return [
        aims.Aim("What would be lost is never under-estimated", less == 0, f"{less} of {count}"),
        aims.Aim("It is over-estimated by at most an interval", more == 0, f"over it: {more} of {count}", why),
    ]


def of_due(rows: Rows) -> list[aims.Aim]:
    """Aims for ``due("auto")``."""
    ratios = [float(row["auto / best"]) for row in rows]
    text = 'Goodput of due("auto") within 1 % of the best fixed interval'
    return [aims.Aim(text, min(ratios) >= _SHARE, f"{min(ratios):.4f} to {max(ratios):.4f} of it in {len(rows)} cases")]


SECTIONS = (
    ("exposure", "What would be lost", EXPOSURE, of_exposure),
    ("due", "When to save", DUE, of_due),
)

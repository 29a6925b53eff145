"""Texts, tables and aims of what is measured of uploads, downloads and restores."""

from __future__ import annotations

from typing import Any

from .aims import Aim, Rows

INCUMBENT = "metaflow-checkpoint"
#: Another checkout of this project: what something costs, and no peer.
BEFORE = "ours before"
#: What is no Python: the small objects' aim is against these.
NATIVE = ("boto3 CRT", "obstore", "s5cmd", "rclone")
SMALL = "1,000 x 64 KiB"
UP, UP_SMALL, DOWN, INCUMBENT_UP, INCUMBENT_DOWN = 1.0, 0.7, 0.9, 4.0, 3.0
MEMORY_MIB = 150
#: Growth from the first to the last that still counts as flat.
FLAT = 2.0

ENGINES = """The S3 store alone, without a flow, beside other clients: seconds, CPU seconds of the client, and its peak
resident memory; medians, engines in turns. Every engine is a process that has connected and moved one small object
before the clock starts; command line tools are timed whole. *ours before* is the hand-written HTTP client that the
present engine replaced."""
MEMORY = """One checkpoint of one file through the real agent, to a server that throws it away: what the uploader (the
uploader) and the agent beside it had resident at most."""
INTERFERENCE = """Steps of a training loop (half pure Python, half NumPy, about 6 ms) while something uploads in the
background without an end. The incumbent saves within the loop. Two cores; the server takes its share of them."""
DEDUP = """A directory as LoRA leaves it: 2 GiB of frozen weights, an adapter of 20 MiB that is written anew before each
of 10 saves; each checkpoint is in the store before the next begins."""
HISTORY = """What a task pays that has so many checkpoints already: `save()`, the hook before the step, asking for the
newest, the hook after the step. *here*: saved by this attempt; *elsewhere*: by one on another machine."""
RESTORE = """Loading into a new directory: while the checkpoint still waits on this machine (*spool*), and from the
store."""
BACKLOG = """100 saves of 64 MiB as fast as the loop can: when the last one is in the store. *bound*: the bytes divided
by the bandwidth limit, or without one by what the store alone takes from one process."""

_FIGURES = ("seconds", "cpu", "peak MiB")


def engines_table(rows: Rows) -> str:
    """Two tables, one a direction: an engine a line, a case a column."""
    tables = []
    for direction, title in (("up", "Upload"), ("down", "Download")):
        lines = [row for row in rows if row["direction"] == direction]
        cases = list(dict.fromkeys(row["case"] for row in lines))
        names = list(dict.fromkeys(row["engine"] for row in lines))
        head = [f"| {title} | " + " | ".join(cases) + " |", "|" + "---|" * (len(cases) + 1)]
        body = []
        for name in names:
            found = {row["case"]: row for row in lines if row["engine"] == name}
            body.append(f"| {name} | " + " | ".join(_cell(found.get(case)) for case in cases) + " |")
        tables.append("\n".join(head + body))
    return "\n\n".join(tables)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    seconds, cpu, peak = (row[key] for key in _FIGURES)
    return f"**{seconds:.2f} s** · {cpu:.2f} cpu · {peak} MiB"


def of_engines(rows: Rows) -> list[Aim]:
    """Aims of one server's runs."""
    found = []
    for direction, case in dict.fromkeys((row["direction"], row["case"]) for row in rows):
        seconds = {r["engine"]: r["seconds"] for r in rows if (r["direction"], r["case"]) == (direction, case)}
        mine, incumbent = seconds.pop("ours", 0.0), seconds.pop(INCUMBENT, 0.0)
        seconds.pop(BEFORE, None)
        native = direction == "up" and case == SMALL
        wanted = (UP_SMALL if native else UP) if direction == "up" else DOWN
        peers = {name: value for name, value in seconds.items() if not native or name in NATIVE}
        if mine and peers:
            best = min(peers, key=lambda name: peers[name])
            label = "native client" if native else "peer"
            text = f"{direction}, {case}: at least {wanted:g} x the fastest {label}"
            found.append(Aim(text, peers[best] >= wanted * mine, f"{peers[best] / mine:.2f} x {best}"))
        if mine and incumbent:
            least = INCUMBENT_UP if direction == "up" else INCUMBENT_DOWN
            text = f"{direction}, {case}: at least {least:g} x the incumbent"
            found.append(Aim(text, incumbent >= least * mine, f"{incumbent / mine:.1f} x"))
    return found


def of_memory(rows: Rows) -> list[Aim]:
    peaks = [row["uploaders' peak MiB"] + row["agent's peak MiB"] for row in rows]
    figures = ", ".join(f"{row['GiB']} GiB: {peak} MiB" for row, peak in zip(rows, peaks, strict=True))
    return [
        Aim(f"Agent and uploader together below {MEMORY_MIB} MiB, whatever the size", max(peaks) < MEMORY_MIB, figures)
    ]


def of_history(rows: Rows) -> list[Aim]:
    """Flat: what takes milliseconds with the fewest takes no multiple of it with the most."""
    found = []
    for store, where in dict.fromkeys((row["store"], row["history"]) for row in rows):
        mine = [r for r in rows if (r["store"], r["history"], r["package"]) == (store, where, "ours")]
        low, high = mine[0], mine[-1]
        grown = [
            f"{key.removesuffix('_ms')} {low[key]:.1f} → {high[key]:.1f} ms"
            for key in ("save_ms", "pre_step_ms", "latest_ms", "post_step_ms")
        ]
        worst = max(high[key] / max(low[key], 1.0) for key in ("save_ms", "pre_step_ms", "latest_ms", "post_step_ms"))
        span = f"{low['checkpoints']:,} to {high['checkpoints']:,} checkpoints"
        text = f"Flat from {span} ({store}, {where}; at most {FLAT:g} x)"
        found.append(Aim(text, worst <= FLAT, "; ".join(grown)))
    return found


def without(rows: Rows, *columns: str) -> Rows:
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]

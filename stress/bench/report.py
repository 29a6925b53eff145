"""Writes ``BENCHMARKS.md`` from what was recorded: ``python -m stress.bench.report``.

Every section is a function from its recorded rows to Markdown; what was not recorded here is kept as the page has it.
The page begins with a table of all aims, which is made of the sections below it.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any

from . import aims, card, data_plane, exposure_report, in_place, listing, loop_report, pace, results, series_report
from .environment import PEER, PEER_VERSION, PLOTS, REPOSITORY

Rows = list[dict[str, Any]]

_INTRO = f"""# Benchmarks

Written by `python -m stress.bench`; how to run it, and each part alone, stands in [stress/README.md](stress/README.md).
The incumbent ("peer") is {PEER} {PEER_VERSION}, the release that Metaflow's users have today. Percentiles are
nearest-rank, so with fewer than 100 samples p99 is the maximum. Figures are of one run on one machine; ratios carry
over better than milliseconds.
"""


def table(rows: Rows) -> str:
    """A Markdown table; the keys of the rows are the columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(_heading(column) for column in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _heading(column: str) -> str:
    return column.removesuffix("_ms").replace("_", " ") + (", ms" if column.endswith("_ms") else "")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def save_table(rows: Rows) -> str:
    """One line a store and case, both packages in it."""
    lines: Rows = []
    for mine in (row for row in rows if row["package"] == "ours"):
        case = mine["store"], mine["case"]
        theirs = next(row for row in rows if row["package"] == "peer" and (row["store"], row["case"]) == case)
        lines.append({
            "store": mine["store"], "files x size": mine["case"],
            "ours p50_ms": mine["p50_ms"], "ours p99_ms": mine["p99_ms"], "ours max_ms": mine["max_ms"],
            "ours first_ms": mine["first_ms"], "ours n": mine["n"],
            "peer p50_ms": theirs["p50_ms"], "peer p99_ms": theirs["p99_ms"], "peer n": theirs["n"],
            "peer / ours (p50)": f"{theirs['p50_ms'] / mine['p50_ms']:,.0f} x",
        })  # fmt: skip
    return table(lines)


def save_before_table(rows: Rows) -> str:
    """One line a store and case, this version and the earlier one in it."""
    lines: Rows = []
    for mine in (row for row in rows if row["package"] == "ours"):
        case = mine["store"], mine["case"]
        earlier = next(row for row in rows if row["package"] != "ours" and (row["store"], row["case"]) == case)
        lines.append({
            "store": mine["store"], "files x size": mine["case"], "n": mine["n"],
            "before p50_ms": earlier["p50_ms"], "p50_ms": mine["p50_ms"],
            "before p99_ms": earlier["p99_ms"], "p99_ms": mine["p99_ms"],
            "now / before (p50)": f"{mine['p50_ms'] / earlier['p50_ms']:.2f}",
        })  # fmt: skip
    return table(lines)


def in_place_table(rows: Rows) -> str:
    lines: Rows = []
    for row in rows:
        lines.append({
            "store": row["store"], "files x size": row["case"],
            "save p50_ms": row["p50_ms"], "save p99_ms": row["p99_ms"], "n": row["n"],
            "open without a save_ms": row["open_alone_ms"], "open after a save, p50_ms": row["open_p50_ms"],
            "p99_ms": row["open_p99_ms"], "max_ms": row["open_max_ms"],
        })  # fmt: skip
    return table(lines)


def threshold_table(rows: Rows) -> str:
    return table([{**row, "bytes": f"{row['bytes'] >> 10:,} KiB"} for row in rows])


SAVE_BEFORE = """Both versions run in a Metaflow task each, in the same run, and take turns in blocks. The earlier one
knows no symbolic links that lead out, and keeps no modification times. The newer one begins each turn, right after the
other's files were removed, which costs a few percent: one version beside itself gave 1.06 at 1 x 64 MiB."""

SAVE = """How long the caller is blocked in `save()`, in a Metaflow task of each package, in turns, on the same store.
Before every save the trainer has written its files (of many files: 100 of them) anew to a temporary name and renamed
them. Small checkpoints are saved without a pause, so that uploads of the earlier ones go on meanwhile; from 1 GiB and
from 10,000 files on, each save waits until the store has the one before. *first* is the first save of the task. S3 is
a server on loopback: the incumbent's figures are what it reaches without a network."""
BLOCKED = """A trainer writes its files to a new directory, has the kernel begin to write them to the disk, and saves
at once, without Metaflow, to the local store. *all*: the system calls that a capture by links cannot do without, in
turns with the saves and in the same moment; the lines below are its parts, each for all files together."""
IN_PLACE = """The price of a constant-time save, for trainers that write over their files instead of renaming:
`open(path, "wb")` right after `save()` is held until the snapshot has a copy of its own of that file. Figures are for
all opens of one checkpoint's files (at most 100) together; *without a save* is what truncating them costs in any
case. Who writes to a temporary name and renames never pays this."""
OVERHEAD = """Medians for a task that saves nothing. *to code*: from the task's start to the user's first line, the
agent's start included; *pre step*: the decorator's hook in it; *flush*: the hook at the step's end; *after code*:
from the user's last line to the end of the task, artifacts included; *flow*: wall time of the whole run of two
steps."""
THRESHOLD = """100 files: all packed (copied into one file) against all hard-linked and leased, without Metaflow, on
the local store, medians. *save*: the call; *open*: `open("wb")` of all files right after it, together."""
TORN = "A trainer rewrites right after `save()`, in every way and on every file system; every checkpoint is read back."
FILESYSTEMS = """A checkpoint of three files is rewritten during and after its capture: by a thread, another process,
through another mount; in place, mapped with and without a descriptor, truncated, appended to, renamed; with each
strategy. What is committed is judged by what its bytes say about when they were written: of one moment of its save?"""
KILLS = """SIGKILL to the task, the agent, its uploader or all of them, at every named point and at random.
*unheard*: in the store although the task was killed before `save()` had returned; *failed+reported*: rewritten in
place while nobody was there to guard it."""
FAULTS = "Saves through a proxy before a real S3 server: what `save()` takes, and what is in the store at the end."
S3_FAULTS = """Everything that may be wrong with an answer, for every kind of request. A cell is as it should be if the
call ends as the table of faults says, within its limit, and what is stored or loaded is right."""
S3_FLOWS = """Real flows save over TLS through a front that misbehaves. Each has to end well at its first attempt and in
time, and another process has to load all that was saved."""
RETENTION = """Random lives of two tasks over one store: they save, annotate, apply rules, remove by hand, begin
attempts and collect garbage, at once, and processes die anywhere. *wrong*: what was listed and could not be loaded,
what was removed and had to stay, what stayed and had to go."""
RETENTION_KILLS = """Processes remove checkpoints by hand, by rules and as garbage, and are killed at random moments.
*wrong*: what was listed afterwards and could not be loaded, or was left behind in the end."""
CLEANERS = "Files of every kind vanish from a spool, in every phase. What was saved is stored, or named as lost."
PREEMPT = "Ten saves wait, 30 s are left, and the bandwidth takes three in that time."
TWICE = """The same attempt number on two to four machines (processes with spools of their own), one after the other
and at once, killed at random, and a retry after them. After each step everything committed was read back.
*not from the newest*: a start that resumed from less than what was committed before it began."""
AGENT_STATES = """How often which state of agent or uploader met which phase of a task, in lives drawn at random. In the
end every save is in the store with the content that was saved, or named with a reason; every flush has ended within its
limit."""
PREEMPTIONS = "Seconds are left, checkpoints wait, and some of them cannot be stored, each for a reason of its own."
SOAK = "A save a second by three writers, to S3; medians of a sixth of the samples."
WATCH = """A script that knows nothing of us writes `checkpoint-N/` directories at random speeds; a watch saves what
is finished, and every checkpoint in the store is compared with what the script writes."""
FRAMEWORKS = """Real trainers of eight kinds, unchanged, each keeping its newest two checkpoints and writing one a
second; watched with the default settings."""
FRAMEWORKS_KILLED = "The same, each killed at a random moment; a second attempt goes on from what is there."
FUZZ = """Intruders at the agent's socket while a task saves; and at the loader manifests, tars, listings, references
and metadata that anybody may have written."""
MODEL = """A Hypothesis state machine: a task, its agent, its uploader, spool and store, turn by turn, killed at
system calls; after every step all that was ever saved must be where the model says."""
SIGNALS = """Real signals at random moments; their handlers save, flush, load, raise, or end the process, and interrupt
saves, flushes, loads, and each other. What every save returned is compared with what is in the store."""
GANGS = "Runs of a real flow with `@parallel`; SIGKILL to a rank's task, at times with an agent, once or twice."
COLLECTIVE = "Every node saves its shard at the same moment; all nodes are on this machine, before one S3 server."
DDP = """`torchrun` trains a real model on two ranks (DistributedDataParallel, gloo) that save together, each its part.
In each attempt a rank is killed, at a random step and moment (in the forward pass, before its save, after it), and the
retry goes on from what all had saved. Every loss is compared with that of a training that was left alone, float for
float."""
INTEGRATIONS = """The flows of the [frameworks' pages](docs/frameworks/README.md), run as they are. SIGKILL comes to
what trains at random moments, once or more in a run, and `@retry` resumes. Every loss is compared with that of a run
that was left alone, float for float."""
WRITERS = "A task, its threads, its forks and its subprocesses save at the same time; every checkpoint is read back."
FLEET = "Subprocesses of one task save at the same time through its one socket; every checkpoint is read back."

ENGINES_TABLE = data_plane.engines_table


def backlog_table(rows: Rows) -> str:
    return table(data_plane.without(rows, "curve"))


Render = Callable[[Rows], str]
Judge = Callable[[Rows], list[aims.Aim]]

#: name, title, text, table, aims
SECTIONS: tuple[tuple[str, str, str, Render, Judge | None], ...] = (
    ("machine", "Machine", "", table, None),
    ("save", "Time blocked in save()", SAVE, save_table, aims.of_save),
    ("save_before", "Time blocked in save(), beside an earlier version", SAVE_BEFORE, save_before_table, None),
    ("blocked", "Time blocked while the disk writes back", BLOCKED, table, aims.of_blocked),
    ("in_place", "Writing in place after save()", IN_PLACE, in_place_table, None),
    ("in_place_copy", "Writing in place, beside a copy", in_place.TEXT, table, in_place.of_in_place),
    ("overhead", "What @checkpoint adds to a task", OVERHEAD, table, aims.of_overhead),
    ("threshold", "Copy or link", THRESHOLD, threshold_table, None),
    ("engines_sink", "Engines: a server that discards", data_plane.ENGINES, ENGINES_TABLE, data_plane.of_engines),
    ("engines_sink_tls", "Engines: the same over TLS", data_plane.ENGINES, ENGINES_TABLE, data_plane.of_engines),
    (
        "engines_sink_tls_20ms",
        "Engines: over TLS, 20 ms away",
        data_plane.ENGINES,
        ENGINES_TABLE,
        data_plane.of_engines,
    ),
    ("engines_rclone", "Engines: rclone's server", data_plane.ENGINES, ENGINES_TABLE, data_plane.of_engines),
    ("memory", "Memory of the agent", data_plane.MEMORY, table, data_plane.of_memory),
    ("interference", "The training loop beside an upload", data_plane.INTERFERENCE, table, None),
    ("pace", "The training loop beside uploads at a pace", pace.TEXT, table, pace.of_pace),
    ("dedup", "Unchanged files", data_plane.DEDUP, table, None),
    *((name, title, text, table, judge) for name, title, text, judge in series_report.SECTIONS),
    ("history", "A long history", data_plane.HISTORY, table, data_plane.of_history),
    ("listing", "Lists of many checkpoints", listing.TEXT, table, None),
    ("card", "What the card costs", card.TEXT, table, card.of_card),
    ("restore", "Restores", data_plane.RESTORE, table, None),
    ("backlog", "Time to durable", data_plane.BACKLOG, backlog_table, None),
    *((name, title, text, table, judge) for name, title, text, judge in loop_report.SECTIONS),
    ("torn", "Torn snapshots", TORN, table, None),
    ("edits", "Random edits", series_report.EDITS, table, None),
    ("filesystems", "File systems, writers and strategies", FILESYSTEMS, table, None),
    ("many_writers", "Many writers", WRITERS, table, None),
    ("fleet", "A fleet of subprocesses", FLEET, table, None),
    ("kills", "Kills", KILLS, table, None),
    ("faults", "A store that fails", FAULTS, table, None),
    ("s3_faults", "Answers of S3 that are wrong", S3_FAULTS, table, None),
    ("s3_flows", "Flows in bad weather", S3_FLOWS, table, None),
    ("retention", "Rules of retention against a model", RETENTION, table, None),
    ("retention_kills", "Removals that are killed", RETENTION_KILLS, table, None),
    ("cleaners", "Files that vanish from the spool", CLEANERS, table, None),
    ("preempt", "A machine that is taken away", PREEMPT, table, None),
    ("preemptions", "Many machines that are taken away", PREEMPTIONS, table, None),
    *((name, title, text, table, judge) for name, title, text, judge in exposure_report.SECTIONS),
    ("twice", "The same attempt number twice", TWICE, table, None),
    ("agent_states", "Agents that die, hang, or cannot be had", AGENT_STATES, table, None),
    ("soak", "An hour of saves", SOAK, table, None),
    ("watch", "An unmodified trainer, watched", WATCH, table, None),
    ("watch_s3", "An unmodified trainer, watched, to S3", "The same, to rclone's server.", table, None),
    ("watch_frameworks", "Training frameworks, watched", FRAMEWORKS, table, None),
    ("watch_frameworks_killed", "Training frameworks that are killed, watched", FRAMEWORKS_KILLED, table, None),
    ("fuzz", "Hostile frames and checkpoints", FUZZ, table, None),
    ("model", "Random lives against a model", MODEL, table, None),
    ("signals", "Handlers of signals that come at any moment", SIGNALS, table, None),
    ("gangs", "Gangs whose ranks are killed", GANGS, table, None),
    ("collective", "The commit of many nodes", COLLECTIVE, table, None),
    ("ddp", "Data-parallel training, killed and resumed", DDP, table, None),
    ("integrations", "Frameworks, killed and resumed", INTEGRATIONS, table, None),
)


def section(
    name: str, title: str, text: str, render: Render = table, judge: Judge | None = None, *, earlier: str = ""
) -> str:
    """One section of the page; ``earlier``: what the page says, kept where nothing was recorded since."""
    data = results.read(name)
    if data is None or not data["rows"]:
        return earlier
    verdicts = "\n".join(str(aim) for aim in judge(data["rows"])) if judge else ""
    notes = [f"> {note}" for note in data["notes"]]
    plot = os.path.join(PLOTS, f"{name}.png")
    picture = f"![{title}]({os.path.relpath(plot, REPOSITORY)})" if os.path.exists(plot) else ""
    parts = [f"## {title}", text, f"`{data['command']}`", render(data["rows"]), picture, verdicts, *notes]
    return "\n\n".join(part for part in parts if part)


def sections_of(path: str) -> dict[str, str]:
    """Sections of a page that was written earlier, by title."""
    try:
        with open(path) as file:
            parts = file.read().split("\n## ")[1:]
    except FileNotFoundError:
        return {}
    return {part.partition("\n")[0]: f"## {part.strip()}" for part in parts}


#: Columns that count what must never happen, and columns that must say yes, in whatever section they are.
_NEVER = (
    "wrong", "torn", "missing", "partial", "damaged", "out of order", "other", "other content", "same version",
    "violations", "with anything wrong", "twice", "half", "hung", "not as they should be", "overwritten", "gone",
    "not from the newest",
    "saved twice under one key", "partial checkpoints, mixtures, attempts that did not end well",
)  # fmt: skip
_ALWAYS = ("flat", "as it should be", "curves equal", "same model", "bit-equal")
_VERDICT = re.compile(r"^- (.+?): ((?:met|\*\*missed\*\*)[ (].*)$")


def aims_section(sections: list[str]) -> str:
    """The table at the beginning: every aim that the sections speak of, the missed ones first.

    An aim is a line that says "met" or "missed" under a section's table, or a column that must be zero or yes.
    """
    lines: list[tuple[bool, str]] = []
    for text in sections:
        title, _, body = text.removeprefix("## ").partition("\n")
        link = re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
        found = [*_said(body), *_counted(body)]
        for missed, aim, figures in found:
            verdict = "**missed**" if missed else "met"
            lines.append((not missed, f"| {verdict} | {aim} | {figures} | [{title}](#{link}) |"))
    lines.sort(key=lambda line: line[0])
    rows = "\n".join(line for _, line in lines)
    return f"## Aims\n\nWhat was missed comes first.\n\n| | aim | measured | in |\n|---|---|---|---|\n{rows}"


def _said(body: str) -> list[tuple[bool, str, str]]:
    """Whether it was missed, what, and the figures, of the lines that say so."""
    joined = re.sub(r"\n  (?=\S)", " ", body)
    found = []
    for match in filter(None, map(_VERDICT.match, joined.splitlines())):
        aim, rest = match.groups()
        first = re.split(r"\.(?= [A-Z]|$)", rest)[0]  # What follows explains.
        plain = re.fullmatch(r"(?:met|\*\*missed\*\*) \((.*?)\)", first)
        found.append(("**missed**" in rest, aim, plain[1] if plain else first.replace("**missed**", "missed")))
    return found


def _counted(body: str) -> list[tuple[bool, str, str]]:
    """The same of a section's columns that must be zero, or yes."""
    found = []
    table_lines = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table_lines]
    if len(cells) > 2:
        columns = {name: [row[i] for row in cells[2:] if i < len(row)] for i, name in enumerate(cells[0])}
        counts = {name: sum(map(_number, columns[name])) for name in _NEVER if name in columns}
        # Of tables with one figure a line, the lines.
        counts |= {row[0]: _number(row[1]) for row in cells[2:] if len(row) == 2 and row[0] in _NEVER}
        if counts:
            figures = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            found.append((any(counts.values()), "These counts are zero", figures))
        for name in _ALWAYS:
            if name in columns:
                asked = [cell for cell in columns[name] if cell]
                good = asked.count("yes")
                found.append((good < len(asked), name.capitalize(), f"{good} of {len(asked)}"))
    notes = re.findall(r"with anything wrong:? (\d+)", body)
    return found + [(count != "0", "These counts are zero", f"{count} with anything wrong") for count in notes]


def _number(cell: str) -> int:
    return int(cell.replace(",", "")) if re.fullmatch(r"[\d,]+", cell) else 0


def write(path: str | None = None) -> str:
    """Write the page and return its path."""
    path = path or os.path.join(REPOSITORY, "BENCHMARKS.md")
    known = [name for name, *_ in SECTIONS]
    more = [(name, name.replace("_", " ").capitalize(), "") for name in results.recorded() if name not in known]
    before = sections_of(path)
    before.pop("Aims", None)
    sections = [section(*item, earlier=before.pop(item[1], "")) for item in SECTIONS]
    sections += [section(*item, earlier=before.pop(item[1], "")) for item in more]
    sections += before.values()
    with open(path, "w") as file:
        there = [each for each in sections if each]
        file.write("\n\n".join([_INTRO.rstrip(), aims_section(there), *there]) + "\n")
    return path


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m stress.bench.report", description=__doc__).parse_args()
    print(write())

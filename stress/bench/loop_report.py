"""From what ``stress.gpu_loop`` measured to rows, and from rows to aims: the training loop's sections of the report."""

from __future__ import annotations

from typing import Any

from . import results
from .aims import Aim

Rows = list[dict[str, Any]]

ASYNC_SHARE, SYNC_RATE = 0.01, 0.80
STEP_P50, STEP_P99 = 0.01, 0.05
MEMORY_STATES = 2.0
_FLAT, _SETTLED = 1.02, 20
#: From so many samples on there is a p99.
_ENOUGH = 30

_WHY_ASYNC = (
    "The call plans the file and copies small tensors: some 8 µs a tensor, whatever its bytes, so that its share "
    "falls as the tensors grow; and torch.save writes into the page cache here, and waits for no disk."
)
_WHY_STEPS = (
    "One step in twenty begins with a checkpoint, so p99 is one of these: it has the copy in it, or beside it, and on "
    "a CPU both take the same memory and the same cores. With all cores busy so do the upload and the server, on this "
    "machine, that takes it."
)

COPY, TORCH, SYNC, ASYNC = "copy_ of the tensors", "torch.save", "save_state, sync", "save_state, async"
WITHOUT = "no checkpoints"

BLOCKED = """How long a training loop waits for one checkpoint of a model and Adam's state. *call*: until the call
returns; *wait*: what is left to wait for after the next forward and backward pass, before the optimizer may change
the tensors; *blocked*: both. *pass*: that forward and backward pass, which shares the machine with what goes on.
*done*: from the beginning of the call until the checkpoint is where it is kept; nothing else is under way when a
checkpoint begins. All take turns in random order, each followed by a step of the training. *GB/s* is the state through
*blocked*; the measure for it is `copy_` of all tensors into memory that was used before (pinned memory for a GPU)."""
STEPS = """One loop in blocks, in random order: without checkpoints, and with one every so many steps, each in the step
that it begins. The store is so slow that an upload takes 0.95 of the time from one checkpoint to the next: *under way*
is the share of steps at whose end something was still to be uploaded. *with a save*: the median of the steps that
begin with one. Of twenty steps one does, so p99 is one of these."""
MEMORY = """All memory of trainer, agent and uploader (what is mapped by several is counted once), and *staged*: files
in `/dev/shm`. After each checkpoint, above what there was before the first one; each is saved while the one before is
uploaded. *flat*: the last 20 need at most 2 % more than the 20 after the first 20."""
RESTORE = """From a new model and optimizer in memory to the end of the first step, medians; *load* is that without
the step. All was just written, so what a disk has is read from memory. The files that lie on the local disk are the
floor: no store is in between."""


def facts_notes(facts: dict[str, Any]) -> list[str]:
    """What the figures depend on, and what could not be measured."""
    versions = [
        f"{name} {version}" for name, version in {"torch": facts["torch"], **facts["versions"]}.items() if version
    ]
    where = facts["device"] or "CPU"
    notes = [
        f"{facts['parameters']:,} parameters, {facts['tensors']:,} tensors, {facts['bytes'] / 1e9:.2f} GB of state; "
        f"{where}, {facts['threads']} threads of PyTorch; {', '.join(versions)}."
    ]
    return notes + [f"Not measured: {name}, because {reason}." for name, reason in facts["missing"].items()]


def blocked_rows(facts: dict[str, Any], taken: dict[str, list[dict[str, float]]], same: dict[str, bool]) -> Rows:
    rows: Rows = []
    for key, samples in taken.items():
        name, kept_in = facts["savers"][key]
        waits = [each["call"] + each["wait"] for each in samples]
        middle = results.median(waits)
        rows.append({
            "saver": name, "n": len(samples),
            "call p50_ms": 1000 * results.median([each["call"] for each in samples]),
            "wait p50_ms": 1000 * results.median([each["wait"] for each in samples]),
            "blocked p50_ms": 1000 * middle,
            "pass p50_ms": 1000 * results.median([each["pass"] for each in samples]),
            "p99_ms": 1000 * results.percentile(waits, 0.99) if len(waits) >= _ENOUGH else "",
            "max_ms": 1000 * max(waits), "GB/s": facts["bytes"] / middle / 1e9,
            "done p50, s": results.median([each["done"] for each in samples]), "kept in": kept_in,
            "bit-equal": same.get(key, ""),
        })  # fmt: skip
    base = next((row["blocked p50_ms"] for row in rows if row["saver"] == TORCH), None)
    for row in rows:
        row["of torch.save"] = f"{row['blocked p50_ms'] / base:.1%}" if base else ""
    return sorted(rows, key=lambda row: -row["blocked p50_ms"])


def of_blocked(rows: Rows) -> list[Aim]:
    found = {row["saver"]: row for row in rows}
    aims = []
    if {ASYNC, TORCH} <= found.keys():
        call, wait, base = (found[ASYNC]["call p50_ms"], found[ASYNC]["wait p50_ms"], found[TORCH]["blocked p50_ms"])
        share = found[ASYNC]["blocked p50_ms"] / base
        figures = f"{share:.1%}: a call of {call:.1f} ms, a wait of {wait:.1f} ms, torch.save {base:,.0f} ms"
        text = f"save_state, async blocks for at most {ASYNC_SHARE:.0%} of torch.save"
        aims.append(Aim(text, share <= ASYNC_SHARE, figures, _WHY_ASYNC))
    if {SYNC, COPY} <= found.keys():
        rate, best = found[SYNC]["GB/s"], found[COPY]["GB/s"]
        text = f"save_state, sync takes the state at {SYNC_RATE:.0%} of the rate of copy_ at least"
        aims.append(Aim(text, rate >= SYNC_RATE * best, f"{rate:.2f} of {best:.2f} GB/s: {rate / best:.0%}"))
    return aims


def steps_rows(situation: str, facts: dict[str, Any], runs: dict[str, Rows], every: int) -> Rows:
    rows: Rows = []
    names = {"": WITHOUT} | {key: name for key, (name, _) in facts["savers"].items()}
    bare = [seconds for run in runs[""] for seconds in run["times"]]
    for key, blocks in runs.items():
        times = [seconds for run in blocks for seconds in run["times"]]
        saving = [seconds for run in blocks for seconds in run["times"][::every]] if key else []
        row = {
            "situation": situation, "threads": facts["threads"], "checkpoints": names[key], "steps": len(times),
            **{name: value for name, value in results.summary(times).items() if name != "n"},
            "with a save_ms": 1000 * results.median(saving) if saving else "",
            "p50 above": _above(times, bare, 0.5) if key else "", "p99 above": _above(times, bare, 0.99) if key else "",
            "all steps above": f"{sum(times) / len(times) / (sum(bare) / len(bare)) - 1:+.1%}" if key else "",
            "under way": f"{sum(run['under way'] for run in blocks) / len(times):.0%}" if key else "",
        }  # fmt: skip
        rows.append(row)
    return rows


def _above(times: list[float], bare: list[float], share: float) -> str:
    return f"{results.percentile(times, share) / results.percentile(bare, share) - 1:+.1%}"


def of_steps(rows: Rows) -> list[Aim]:
    bare = {row["situation"]: row for row in rows if row["checkpoints"] == WITHOUT}
    aims = []
    for row in rows:
        if row["checkpoints"] in (SYNC, ASYNC):
            base = bare[row["situation"]]
            p50, p99 = (row[key] / base[key] - 1 for key in ("p50_ms", "p99_ms"))
            limits = f"at most {STEP_P50:.0%} more (p50) and {STEP_P99:.0%} (p99)"
            figures = f"{p50:+.1%} and {p99:+.1%}, an upload under way after {row['under way']} of the steps"
            text = f"A step takes {limits} with {row['checkpoints']}, {row['situation']}"
            aims.append(Aim(text, p50 <= STEP_P50 and p99 <= STEP_P99, figures, _WHY_STEPS))
    return aims


def memory_row(facts: dict[str, Any], key: str, samples: Rows) -> dict[str, Any]:
    """``samples``: the first one is from before the first checkpoint."""
    first, later = samples[0], samples[1:]
    totals = [sum(each.values()) - sum(first.values()) for each in later]
    settled = min(_SETTLED, len(totals) // 2)
    early, late = (results.median(part) for part in (totals[settled : 2 * settled], totals[-settled:]))
    base = sum(first.values())
    return {
        "saver": facts["savers"][key][0], "checkpoints": len(later), "state, MB": facts["bytes"] / 1e6,
        **{f"{who}, MB more": max(each[who] - first[who] for each in later) / 1e6 for who in first},
        "together, MB more": max(totals) / 1e6, "x state": max(totals) / facts["bytes"],
        "flat": (base + late) <= _FLAT * (base + early),
    }  # fmt: skip


def of_memory(rows: Rows) -> list[Aim]:
    aims = []
    for row in rows:
        if row["saver"] in (SYNC, ASYNC):
            states = row["staged, MB more"] / row["state, MB"]
            text = f"{row['saver']}: at most {MEMORY_STATES:g} x the state is held in memory for checkpoints"
            counts = f"after {row['checkpoints']} checkpoints"
            figures = f"{states:.2f} x {counts}; with all processes {row['x state']:.2f} x"
            aims.append(Aim(text, round(states, 2) <= MEMORY_STATES, figures))
    return aims


def restore_rows(
    where: str, facts: dict[str, Any], taken: dict[str, list[dict[str, float]]], same: dict[str, bool]
) -> Rows:
    rows = []
    for way, samples in taken.items():
        load, ready = (results.median([each[key] for each in samples]) for key in ("load", "first step"))
        rows.append({
            "store": where, "way": way, "n": len(samples), "load, s": load, "until the first step, s": ready,
            "GB/s": facts["bytes"] / load / 1e9, "bit-equal": same[way],
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["until the first step, s"])


#: name, title, text, aims: the report has a table of rows for each.
_PARTS = (
    ("loop_blocked", "A training loop: time blocked per checkpoint", BLOCKED, of_blocked),
    ("loop_steps", "A training loop: its steps beside checkpoints", STEPS, of_steps),
    ("loop_memory", "A training loop: memory over 200 checkpoints", MEMORY, of_memory),
    ("loop_restore", "A training loop: back from a checkpoint", RESTORE, None),
)
SECTIONS = (*_PARTS, *((f"{name}_cuda", f"{title}, on a GPU", text, judge) for name, title, text, judge in _PARTS))

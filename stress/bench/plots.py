"""Plots of what was recorded: ``python -m stress.bench.plots`` (needs matplotlib).

One function a section: it takes the recorded rows and the PNG's path.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from . import results
from .environment import PLOTS

Rows = list[dict[str, Any]]

_OURS, _OTHER, _LIMITED = "#1f77b4", "#ff7f0e", "#2ca02c"


def interference(rows: Rows, path: str) -> None:
    """Bars of p50 and p99 for each uploader, one panel a loop and situation; the incumbent's p99 hides its saves, so
    the longest step stands beside each bar.
    """
    panels = list(dict.fromkeys((row["loop"], row["situation"]) for row in rows))
    figure, axes = _figure(len(panels), height=3.6)
    for axis, panel in zip(axes, panels, strict=True):
        lines = [row for row in rows if (row["loop"], row["situation"]) == panel][::-1]
        positions = range(len(lines))
        axis.barh([p + 0.2 for p in positions], [row["p50_ms"] for row in lines], 0.4, color=_OURS, label="p50")
        axis.barh([p - 0.2 for p in positions], [row["p99_ms"] for row in lines], 0.4, color=_OTHER, label="p99")
        for position, row in zip(positions, lines, strict=True):
            text = f" longest {row['max_ms']:,.0f} ms; {row['upload MB/s']:,.0f} MB/s"
            axis.text(row["p99_ms"], position - 0.2, text, va="center", fontsize=8)
        axis.set_yticks(list(positions), [row["uploader"] for row in lines])
        axis.set_xlim(0, 1.8 * max(row["p99_ms"] for row in lines))
        axis.set(title=f"{panel[0]}, {panel[1]}", xlabel="milliseconds a step")
        axis.legend(loc="upper right")
    _save(figure, path)


def history(rows: Rows, path: str) -> None:
    """Both packages over the number of earlier checkpoints, both axes logarithmic; one row of panels a history."""
    shown = {"save_ms": "save()", "pre_step_ms": "hook before the step", "latest_ms": "latest",
             "post_step_ms": "hook after the step"}  # fmt: skip
    cases = list(dict.fromkeys((row["store"], row["history"]) for row in rows))
    figure, axes = _figure(len(cases) * len(shown), columns=len(shown), width=3.4)
    panels = [(case, key) for case in cases for key in shown]
    figures = [row[key] for row in rows for key in shown]
    for axis, ((store, where), key) in zip(axes, panels, strict=True):
        for package, colour in (("ours", _OURS), ("peer", _OTHER)):
            lines = [r for r in rows if (r["store"], r["history"], r["package"]) == (store, where, package)]
            counts = [row["checkpoints"] for row in lines]
            axis.loglog(counts, [row[key] for row in lines], "o-", color=colour, label=package)
        axis.set_title(f"{shown[key]} ({store}, {where})", fontsize=9)
        axis.set(xlabel="earlier checkpoints", ylabel="ms", ylim=(min(figures) / 2, 2 * max(figures)))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def backlog(rows: Rows, path: str) -> None:
    """Checkpoints in the store over time, one line a saver and one panel a store; dotted: when ``save()`` returned."""
    stores = list(dict.fromkeys(row["store"] for row in rows))
    figure, axes = _figure(len(stores), height=3.6)
    for axis, store in zip(axes, stores, strict=True):
        lines = [row for row in rows if row["store"] == store]
        for row in lines:
            colour = {"ours": _OURS, "peer": _OTHER}.get(row["saver"], _LIMITED)
            numbers = range(1, row["saves"] + 1)
            axis.step(
                row["curve"]["durable"], numbers, where="post", color=colour, label=f"{row['saver']}: in the store"
            )
            if row["saver"] == "ours":
                axis.step(
                    row["curve"]["returned"], numbers, ":", where="post", color=colour, label="ours: save() returned"
                )
            if row["saver"].endswith("limited"):
                axis.axvline(row["bound s"], color=colour, linestyle="--", linewidth=1, label="bytes / limit")
        axis.set(title=store, xlabel="seconds since the first save", ylabel="checkpoints")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def dedup(rows: Rows, path: str) -> None:
    """Bars: megabytes and seconds of all checkpoints, both packages, one pair of panels a store."""
    stores = list(dict.fromkeys(row["store"] for row in rows))
    keys = ("all, MB", "all, s")
    figure, axes = _figure(2 * len(stores), columns=2, width=4.5, height=2.4)
    for axis, (store, key) in zip(axes, [(store, key) for store in stores for key in keys], strict=True):
        lines = [row for row in rows if row["store"] == store]
        bars = axis.barh([row["package"] for row in lines], [row[key] for row in lines], color=[_OURS, _OTHER])
        axis.bar_label(bars, fmt="{:,.1f}", padding=2)
        axis.margins(x=0.2)
        axis.set_title(f"{store}: {lines[0]['checkpoints']} checkpoints, {key.split(', ')[1]}")
    _save(figure, path)


def restore(rows: Rows, path: str) -> None:
    """Bars: milliseconds of one restore, one panel a store and checkpoint."""
    keys = ("ours from the spool_ms", "ours from the store_ms", "peer_ms")
    figure, axes = _figure(len(rows), columns=2, width=5, height=2.2)
    for axis, row in zip(axes, rows, strict=True):
        labels = [key.removesuffix("_ms") for key in keys]
        bars = axis.barh(labels[::-1], [row[key] for key in keys][::-1], color=[_OTHER, _OURS, _LIMITED])
        axis.bar_label(bars, fmt="{:,.0f}", padding=2)
        axis.margins(x=0.2)
        axis.set_title(f"{row['store']}, {row['files x size']}: ms", fontsize=10)
    _save(figure, path)


def _figure(count: int, *, columns: int = 1, width: float = 8.0, height: float = 2.8) -> tuple[Any, list[Any]]:
    """A figure of so many panels; sizes in inches, of one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = -(-count // columns)
    figure, axes = pyplot.subplots(lines, columns, squeeze=False, figsize=(width * columns, height * lines))
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _save(figure: Any, path: str) -> None:
    from matplotlib import pyplot

    os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def engines(rows: Rows, path: str) -> None:
    """Bars of seconds, one line of panels a direction; what takes far longer than the others is cut off."""
    panels = list(dict.fromkeys((row["direction"], row["case"]) for row in rows))
    figure, axes = _figure(len(panels), columns=len(panels) // 2 or 1, width=4.2, height=3.0)
    for axis, (direction, case) in zip(axes, panels, strict=True):
        lines = [row for row in rows if (row["direction"], row["case"]) == (direction, case)][::-1]
        seconds = [row["seconds"] for row in lines]
        longest = 2.2 * sorted(seconds)[len(seconds) // 2]
        colours = [_OURS if row["engine"] == "ours" else _OTHER for row in lines]
        axis.barh([row["engine"] for row in lines], [min(value, longest) for value in seconds], color=colours)
        for position, value in enumerate(seconds):
            axis.text(min(value, longest), position, f" {value:.2f}", va="center", fontsize=8)
        axis.set_xlim(0, 1.2 * longest)
        axis.tick_params(labelsize=8)
        axis.set_title(f"{direction}: {case}, seconds", fontsize=10)
    _save(figure, path)


def memory(rows: Rows, path: str) -> None:
    """Peak memory over the size of the checkpoint."""
    figure, (axis,) = _figure(1, width=5)
    sizes = [row["GiB"] for row in rows]
    axis.plot(sizes, [row["uploaders' peak MiB"] for row in rows], "o-", color=_OURS, label="uploader")
    axis.plot(sizes, [row["agent's peak MiB"] for row in rows], "o-", color=_LIMITED, label="agent")
    axis.axhline(150, color=_OTHER, linestyle="--", linewidth=1, label="aim, together")
    axis.set(xlabel="GiB in one checkpoint", ylabel="MiB resident at most", ylim=(0, 170))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    _save(figure, path)


def soak(samples: Rows, path: str) -> None:
    """What the processes and the spool need over the time, a panel a unit; ``samples`` of ``stress.soak``."""
    units = ("MiB", "descriptors", "threads", "files")
    figure, axes = _figure(len(units), columns=2, width=5)
    minutes = [item["minutes"] for item in samples]
    for axis, unit in zip(axes, units, strict=True):
        for key in sorted({key for item in samples for key in item if key.endswith(f" {unit}")}):
            axis.plot(minutes, [item.get(key) for item in samples], linewidth=1, label=key.removesuffix(f" {unit}"))
        axis.set(title=unit, xlabel="minutes")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    _save(figure, path)


DRAWN: dict[str, Callable[[Rows, str], None]] = {
    **dict.fromkeys(("engines_sink", "engines_sink_tls", "engines_sink_tls_20ms", "engines_rclone"), engines),
    "memory": memory, "interference": interference, "history": history, "backlog": backlog, "dedup": dedup,
    "restore": restore, "soak": soak,
}  # fmt: skip


def main(directory: str = PLOTS) -> None:
    for name, plot in DRAWN.items():
        data = results.read(name)
        if data is not None:
            plot(data.get("samples", data["rows"]), os.path.join(directory, f"{name}.png"))


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m stress.bench.plots", description=__doc__).parse_args()
    main()

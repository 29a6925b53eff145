"""Send only what changed: ``python -m stress.bench.series [--quick] [--kind K] [--rates 0,50] [--times N]``.

Series of 10 checkpoints as frameworks write them (``flows/series_makers.py``), each in new files. Every tool saves the
same ones, in turns, each when the one before is in its store. Per checkpoint: bytes sent, beside the bytes that
changed; seconds until it is in the store, on networks of so many MB/s.

*without* is this package without content digests (``CONTENT_DIGESTS=0``).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from harness.flow_runs.frameworks import find_or_make_frameworks

from . import results, series_tools
from .environment import FLOWS, Package, caveats, ours, peer, work_directory
from .series_tools import Save, Saved

COMMAND = "python -m stress.bench.series"
KINDS = {
    "hf_full": "HF, all weights, Adam",
    "hf_lora": "HF + LoRA, base beside",
    "accelerate_lora": "accelerate + LoRA, one file",
    "fsdp_dcp": "FSDP shards (DCP), 3/4 frozen",
    "torch_frozen": "torch.save, frozen backbone",
    "torch_history": "the same with a growing list",
    "lightning_adam": "Lightning, all weights, Adam",
}
#: How long a framework may take for a series.
_MAKE_S = 900
#: The incumbent sends everything each time, and takes long for it.
_PEER_SAVES = 3
#: What saves a series several times, as it is measured by how long it takes without digests; the others save it once.
_REPEATED = ("ours", "without")
_MB = 1e6

Runs = dict[str, list[Saved]]


@contextlib.contextmanager
def made(kind: str, count: int, size: str, work: str) -> Iterator[tuple[list[str], list[dict[str, int]]]]:
    """A series: its directories, and what changed in each."""
    folder = os.path.join(work, kind)
    command = [find_or_make_frameworks(), os.path.join(FLOWS, "series_makers.py"), kind, folder, str(count), size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_MAKE_S, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} cannot be made:\n{done.stdout}{done.stderr}")
    try:
        yield (
            [os.path.join(folder, str(number)) for number in range(1, count + 1)],
            json.loads(done.stdout.splitlines()[-1]),
        )
    finally:
        shutil.rmtree(folder)


def savers(options: argparse.Namespace, work: str, rate: float) -> dict[str, Callable[[], Any]]:
    """What takes part, by name. Those that cannot be held to a rate are there only without one."""
    off = {"METAFLOW_ASYNC_CKPT_CONTENT_DIGESTS": "0"}
    flows: dict[str, tuple[Package, dict[str, str]]] = {
        "ours": (ours(), {}), "without": (ours(), off), "peer": (peer(), {}),
    }  # fmt: skip
    found: dict[str, Callable[[], Any]] = {
        name: functools.partial(series_tools.flow, package, os.path.join(work, name), rate, environment)
        for name, (package, environment) in flows.items()
    }
    if shutil.which("restic"):
        found["restic"] = lambda: series_tools.restic(rate)
    if not rate:
        if shutil.which("borg"):
            found["borg"] = series_tools.borg
        found["rclone"] = series_tools.rclone_copy
    return {name: maker for name, maker in found.items() if not options.tool or name in options.tool}


def run(directories: list[str], tools: dict[str, Callable[[], Any]]) -> Runs:
    """Every tool saves every checkpoint, in turns; who begins changes."""
    found: Runs = {name: [] for name in tools}
    with contextlib.ExitStack() as stack:
        saves: dict[str, Save] = {name: stack.enter_context(maker()) for name, maker in tools.items()}
        for number, directory in enumerate(directories):
            names = list(saves)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if name != "peer" or number < _PEER_SAVES:
                    found[name].append(saves[name](directory))
    return found


def bytes_row(kind: str, changes: list[dict[str, int]], runs: Runs) -> dict[str, Any]:
    """A line: means of the later checkpoints, in MB."""

    def mean(values: list[int]) -> float:
        return sum(values[1:]) / len(values[1:]) / _MB

    changed = {key: mean([each[key] for each in changes]) for key in ("exact", "blocks", "chunks")}
    row = {
        "series": KINDS[kind], "MB": mean([each["bytes"] for each in changes]), "files": changes[-1]["files"],
        "changed, bytes": changed["exact"], "in 4 KiB blocks": changed["blocks"], "in 16 MiB chunks": changed["chunks"],
        "chunks / blocks": changed["chunks"] / changed["blocks"],
    }  # fmt: skip
    row |= {f"{name} sent": mean([each.sent for each in saved]) for name, saved in runs.items()}
    if "ours" in runs:
        row["ours / chunks"] = row["ours sent"] / changed["chunks"]
    return row


def seconds_row(kind: str, rate: float, series: dict[str, list[list[Saved]]]) -> dict[str, Any]:
    """A line: medians of the first checkpoints, and of the later ones, of all times that each tool has saved them."""
    firsts = {name: [saved[0].seconds for saved in ones] for name, ones in series.items()}
    later = {name: [each.seconds for saved in ones for each in saved[1:]] for name, ones in series.items()}
    row: dict[str, Any] = {"series": KINDS[kind], "network, MB/s": f"{rate / _MB:g}" if rate else "-"}
    row["firsts"], row["n"] = (max(map(len, seconds.values())) for seconds in (firsts, later))
    repeated = {name: seconds for name, seconds in firsts.items() if name in _REPEATED}
    for label, found in (("first", repeated), ("later", later)):
        row |= {f"{name} {label}, s": results.median(seconds) for name, seconds in found.items()}
        if found.keys() >= set(_REPEATED):
            row[f"ours / without, {label}"] = row[f"ours {label}, s"] / row[f"without {label}, s"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, 3 checkpoints")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--tool", action="append", help="default: all")
    parser.add_argument("--rates", default="0,50,200,1000", help="MB/s; 0: no network, where bytes are counted")
    parser.add_argument("--timed", type=int, default=5, help="checkpoints of a series that are saved at each rate")
    parser.add_argument("--times", type=int, default=3, help="how often each series is saved, to a new store each time")
    options = parser.parse_args()
    count, size = (3, "quick") if options.quick else (10, "full")
    rates = [float(rate) * _MB for rate in options.rates.split(",")]
    sent, seconds, notes = _others("series", options), _others("series_seconds", options), caveats(quick=options.quick)
    for kind in options.kind or KINDS:
        with work_directory() as work, made(kind, count, size, work) as (directories, changes):
            for rate in rates:
                series: defaultdict[str, list[list[Saved]]] = defaultdict(list)
                for number in range(options.times):
                    tools = savers(options, os.path.join(work, f"at-{rate:g}-{number}"), rate)
                    chosen = {name: maker for name, maker in tools.items() if not number or name in _REPEATED}
                    if not chosen:
                        break
                    for name, saved in run(directories if not rate else directories[: options.timed], chosen).items():
                        series[name].append(saved)
                if not series:
                    print(f"None of these tools can be held to {rate / _MB:g} MB/s", file=sys.stderr)
                    continue
                seconds.append(seconds_row(kind, rate, series))
                if not rate:
                    sent.append(bytes_row(kind, changes, {name: ones[0] for name, ones in series.items()}))
                    say(sent[-1])
                say(seconds[-1])
        # What was measured is kept, whatever happens to the next series.
        if 0 in rates:
            results.record("series", results.command(COMMAND), sent, notes)
        results.record("series_seconds", results.command(COMMAND), seconds, notes)


def _others(section: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of earlier runs, of series that are not run now."""
    names = {KINDS[kind] for kind in options.kind or KINDS}
    return [row for row in (results.read(section) or {"rows": []})["rows"] if row["series"] not in names]


def say(row: dict[str, Any]) -> None:
    short = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    print(time.strftime("%H:%M:%S"), short, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""What ``@checkpoint`` adds to a task that saves nothing: ``python -m stress.bench.overhead [--quick]``.

A flow is run without the decorator, with ours and with the incumbent's, in turns; its first step sleeps for half a
second, or does nothing at all (then our agent has hardly started when the step ends). Measured in the task's process:
from the task's start to the user's code (with our agent's start in it), the hook at the step's end (the empty flush),
and from the end of the user's code to the end of the task; and from outside, the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from . import results
from .environment import FLOWS, Package, caveats, flow_environment, ours, peer, work_directory
from .servers import Target, target

COMMAND = "python -m stress.bench.overhead"
NONE_OURS, OURS = "no @checkpoint", "ours"


@dataclass(frozen=True)
class Variant:
    label: str
    package: Package
    options: dict[str, Any] | None
    sleep_s: float = 0.5


def variants() -> tuple[Variant, ...]:
    mine, theirs = ours(), peer()
    return (
        Variant(NONE_OURS, mine, None),
        Variant(OURS, mine, {}),
        Variant("ours, uploader='thread'", mine, {"uploader": "thread"}),
        Variant("no @checkpoint, empty step", mine, None, 0.0),
        Variant("ours, empty step", mine, {}, 0.0),
        Variant("peer", theirs, {}),
        Variant("peer, show_card=False", theirs, {"show_card": False}),
    )


def run_once(variant: Variant, store: Target, work: str) -> dict[str, float]:
    """Seconds: ``to_code``, ``pre_step``, ``flush``, ``after_code``, ``flow``."""
    environment = flow_environment(variant.package, work, store.environment)
    out = os.path.join(work, "spans.json")
    environment |= {"BENCH_OPTIONS": json.dumps(variant.options), "BENCH_OUT": out, "BENCH_SLEEP": str(variant.sleep_s)}
    command = [variant.package.python, os.path.join(FLOWS, "overhead_flow.py"), "--no-pylint", "run"]
    began = time.monotonic()
    subprocess.run(command, env=environment, cwd=work, check=True, capture_output=True)
    whole = time.monotonic() - began
    with open(out) as file:
        spans: dict[str, list[float]] = json.load(file)
    nothing = [0.0, 0.0]
    return {
        "to_code": spans["step"][0] - spans["task"][0],
        "pre_step": _length(spans.get("task_pre_step", nothing)),
        "flush": _length(spans.get("task_post_step", nothing)),
        "after_code": spans["task"][1] - spans["step"][1],
        "flow": whole,
    }


def _length(span: list[float]) -> float:
    return span[1] - span[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 runs of each instead of 20")
    parser.add_argument("--store", choices=("local", "s3"), action="append", help="default: local")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    notes = caveats(quick=options.quick)
    for name in options.store or ["local"]:
        with work_directory() as work, target(name, work) as store:
            measured: dict[str, list[dict[str, float]]] = {variant.label: [] for variant in variants()}
            for number in range(4 if options.quick else 21):
                for variant in variants():
                    figures = run_once(variant, store, work)
                    if number:  # The first run compiles and fills caches.
                        measured[variant.label].append(figures)
            for label, runs in measured.items():
                medians = {f"{key}_ms": results.median([run[key] for run in runs]) * 1000 for key in runs[0]}
                rows.append({"store": name, "task": label, "n": len(runs), **medians})
                print(name, label, {key: round(value, 1) for key, value in medians.items()}, flush=True)
    results.record("overhead", results.command(COMMAND), rows, notes)


if __name__ == "__main__":
    main()

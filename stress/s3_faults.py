"""Every cell of the table of faults against the S3 store, with what came of it and how long it took.

``python -m stress.s3_faults`` prints a table in Markdown: the rows of ``harness/s3/fault_table.py``, each with every
call it is tried with, over TCP and TLS, through the engine and through its fallback. It ends with 1 if a cell is not as
it should be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.s3.fault_calls import CALLS
from harness.s3.fault_cells import ENGINE, FALLBACK, TCP, TLS, Cell, Certificates, Result, run_cells, short_pauses
from harness.s3.fault_table import CELLS
from stress.bench import results

COMMAND = "python -m stress.s3_faults"
#: So much of an error is shown.
_SHOWN = 160


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--fault", default="", help="only rows whose name has this in it")
    parser.add_argument("--call", choices=sorted(CALLS), help="only this call")
    parser.add_argument("--over", choices=(TCP, TLS), help="only over this")
    parser.add_argument("--client", choices=(ENGINE, FALLBACK), help="only through this")
    parser.add_argument("--quick", action="store_true", help="one cell of every row")
    parser.add_argument("--problems", action="store_true", help="show only what is not as it should be")
    options = parser.parse_args()
    cells = [
        cell
        for cell in CELLS
        if options.fault in cell.fault.name
        and options.call in (None, cell.call.name)
        and options.over in (None, cell.over)
        and options.client in (None, cell.client)
    ]
    if options.quick:
        cells = list({cell.fault.name: cell for cell in reversed(cells)}.values())[::-1]
    return _run(cells, only_problems=options.problems)


def _run(cells: Sequence[Cell], *, only_problems: bool) -> int:
    print("| fault | call | over | client | outcome | requests | s |\n|---|---|---|---|---|---|---|")
    started, found = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory(prefix="async-ckpt-faults-") as folder, short_pauses():
        certificates = Certificates(Path(folder))
        for noisy in (False, True):
            for result in run_cells([cell for cell in cells if cell.fault.noisy == noisy], certificates):
                found.append(result)
                if result.problem or not only_problems:
                    print(_line(result), flush=True)
    wrong = [result for result in found if result.problem]
    slowest = max(found, key=lambda result: result.seconds, default=None)
    print(f"\n{len(found):,} cells in {time.monotonic() - started:.0f} s, {len(wrong)} not as they should be", end="")
    print(f"; the slowest took {slowest.seconds:.1f} s ({slowest.cell.name})" if slowest else "")
    results.record("s3_faults", results.command(COMMAND), [_row(*way, found) for way in _ways(found)])
    return 1 if wrong else 0


def _ways(found: Sequence[Result]) -> list[tuple[str, str]]:
    """What was between client and server, and which client."""
    return list(dict.fromkeys((result.cell.over, result.cell.client) for result in found))


def _row(over: str, client: str, found: Sequence[Result]) -> dict[str, Any]:
    """Its line of the page's table."""
    mine = [result for result in found if (result.cell.over, result.cell.client) == (over, client)]
    return {
        "over": over, "client": client, "faults": len({result.cell.fault.name for result in mine}), "cells": len(mine),
        "not as they should be": sum(bool(result.problem) for result in mine),
        "slowest, s": max(result.seconds for result in mine),
    }  # fmt: skip


def _line(result: Result) -> str:
    cell, outcome = result.cell, " ".join(result.outcome.split()).replace("|", "\\|")
    if len(outcome) > _SHOWN:
        outcome = f"{outcome[:_SHOWN]}…"
    if result.problem:
        outcome = f"**{result.problem}** ({outcome})"
    columns = (
        cell.fault.name,
        cell.call.name,
        cell.over,
        cell.client,
        outcome,
        result.requests,
        f"{result.seconds:.2f}",
    )
    return "| " + " | ".join(str(column) for column in columns) + " |"


if __name__ == "__main__":
    sys.exit(main())

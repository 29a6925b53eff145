"""The table of faults: what goes wrong, with which calls, and what has to come of it. ``fault_cells`` tries it.

Rows with "once" pass: the call has to succeed. Rows with "always" have to end, with these words. ``seen`` names issues
of those who met it.
"""

from __future__ import annotations

from dataclasses import replace

from harness.s3 import fault_answers, fault_bucket, fault_network
from harness.s3.fault_cells import Cell, Fault, cells_of


def _paired(faults: list[Fault]) -> list[Fault]:
    return [replace(fault, paired=True) for fault in faults]


FAULTS: list[Fault] = [
    *fault_answers.SILENCE, *fault_answers.LOST, *fault_answers.EARLY, *_paired(fault_answers.NOT_DONE),
    *_paired(fault_answers.REFUSALS), *fault_network.CONNECTIONS, *fault_network.KEPT, *_paired(fault_network.SAME),
    *_paired(fault_network.WRONG), *_paired(fault_bucket.READING), *_paired(fault_bucket.LISTINGS),
    *_paired(fault_bucket.CONDITIONS), *fault_bucket.PLACES, *_paired(fault_network.ENDLESS),
]  # fmt: skip

CELLS: list[Cell] = [cell for fault in FAULTS for cell in cells_of(fault)]

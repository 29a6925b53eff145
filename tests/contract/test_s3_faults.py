"""S3Store is told the truth by nobody: every fault of the table, over TCP and TLS, both transports.

Each fault is tried with every second of its calls. ``python -m stress.s3_faults`` tries all of them.
"""

from __future__ import annotations

import gc
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from harness.s3 import faults
from harness.s3.fault_calls import CALLS
from harness.s3.fault_cells import (
    ENGINE,
    FALLBACK,
    TCP,
    TLS,
    Cell,
    Certificates,
    Fault,
    cells_of,
    run_cells,
    short_pauses,
)
from harness.s3.fault_table import CELLS, FAULTS

# Connections that were left open are counted in each cell, which names itself; the collector's warnings come anywhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    with short_pauses():
        yield Certificates(tmp_path_factory.mktemp("certificates"))
    gc.collect()


#: Of faults that differ only in what is said, as those with another status, so many are always tried: one in four.
_ONE_IN = 4


def kind_of(fault: Fault) -> tuple[object, ...]:
    """What happens in a row, whatever is said: which functions, and whether it ever ends."""
    happens = (fault.inject, fault.at_connect, fault.prepare, fault.between)
    return (*(getattr(function, "__qualname__", "") for function in happens), fault.times is None, fault.waits > 0)


def always_tried() -> dict[str, Cell]:
    """A cell of each kind of fault, by the row's name: one after the other has another call, client and way."""
    seen: Counter[tuple[object, ...]] = Counter()
    found: dict[str, Cell] = {}
    for fault in FAULTS:
        kind = kind_of(fault)
        if seen[kind] % _ONE_IN == 0:
            cells = cells_of(fault)
            found[fault.name] = cells[len(found) % len(cells)]
        seen[kind] += 1
    return found


ALWAYS = always_tried()


def every_second(fault: Fault, client: str, first: int) -> list[Cell]:
    """Cells of a row, with a client, that are not always tried: half of them, and at least one."""
    left = [cell for cell in cells_of(fault) if cell.client == client and cell != ALWAYS.get(fault.name)]
    return left[first::2] or left


REST = {
    f"{fault.name}-{client}": every_second(fault, client, number % 2)
    for number, fault in enumerate(FAULTS)
    for client in (ENGINE, FALLBACK)
}
#: Those that sit out time limits are apart from those that keep the machine busy, which would make them miss more.
WAITING = [cell for cell in ALWAYS.values() if cell.fault.waits]
BUSY = [cell for cell in ALWAYS.values() if not cell.fault.waits]
PARTS = {
    **{f"waiting-{number}": WAITING[number::2] for number in range(2)},
    **{f"busy-{number}": BUSY[number::3] for number in range(3)},
}


@pytest.mark.parametrize("part", PARTS)
def test_one_call_under_each_kind_of_fault_is_done_where_it_is_said_to_be_done_and_all_else_ends_with_words(
    part: str, certificates: Certificates
) -> None:
    check(PARTS[part], certificates)


@pytest.mark.long
@pytest.mark.parametrize("row", [row for row, cells in REST.items() if cells])
def test_what_is_said_to_be_done_is_done_and_all_else_ends_with_words(row: str, certificates: Certificates) -> None:
    check(REST[row], certificates)


def check(cells: list[Cell], certificates: Certificates) -> None:
    results = list(run_cells(cells, certificates))
    wrong = [f"{result.cell.name}: {result.problem} ({result.outcome})" for result in results if result.problem]
    assert not wrong, "\n".join(wrong)
    assert len(results) == len(cells)


def test_what_is_always_tried_has_every_kind_of_fault_every_call_and_each_client_over_both() -> None:
    assert {kind_of(cell.fault) for cell in ALWAYS.values()} == {kind_of(fault) for fault in FAULTS}
    assert {cell.call.name for cell in ALWAYS.values()} == set(CALLS)
    for pair in itertools.product((TCP, TLS), (ENGINE, FALLBACK)):
        assert sum((cell.over, cell.client) == pair for cell in ALWAYS.values()) >= 10, pair


def test_the_table_has_every_call_over_both_with_both() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for over in (TCP, TLS):
        for client in (ENGINE, FALLBACK):
            tried = {cell.call.name for cell in CELLS if (cell.over, cell.client) == (over, client)}
            assert tried == set(CALLS)
    assert len(CELLS) > 3_000


def test_every_fault_that_can_be_made_is_in_the_table() -> None:
    """A function of ``faults`` that no row uses tries nothing."""
    used = {fault.inject for fault in FAULTS}
    for name, function in inspect.getmembers(faults, inspect.isfunction):
        if function.__module__ == faults.__name__ and function.__annotations__ == {"turn": "Turn", "return": "None"}:
            assert function in used, name

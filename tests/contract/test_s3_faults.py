"""S3Store is told the truth by nobody: every fault of the table, with every call, over TCP and TLS, both transports.

``python -m stress.s3_faults`` shows the same cells with their times.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator

import pytest

from harness import faults
from harness.fault_calls import CALLS
from harness.fault_cells import ENGINE, FALLBACK, TCP, TLS, Certificates, Fault, cells_of, run_cells, short_pauses
from harness.fault_table import CELLS, FAULTS

# Connections that were left open are counted in each cell, which names itself; the collector's warnings come anywhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    with short_pauses():
        yield Certificates(tmp_path_factory.mktemp("certificates"))
    gc.collect()


@pytest.mark.parametrize("client", [ENGINE, FALLBACK])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_said_to_be_done_is_done_and_all_else_ends_with_words(
    fault: Fault, client: str, certificates: Certificates
) -> None:
    """One row of the table, its cells side by side: most of them wait."""
    cells = [cell for cell in cells_of(fault) if cell.client == client]
    results = list(run_cells(cells, certificates))
    wrong = [f"{result.cell.name}: {result.problem} ({result.outcome})" for result in results if result.problem]
    assert not wrong, "\n".join(wrong)
    assert len(results) == len(cells)


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

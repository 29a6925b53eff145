"""What a person reads: tables and progress, drawn by rich in a terminal. Where something else reads, or rich is not
installed (in a pod), they are plain lines.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..task.progress import format_bytes

#: Columns: wider than any table.
_WIDE = 10_000


class Advance(Protocol):
    """Called with the number of bytes that have come on."""

    def __call__(self, count: int) -> None: ...


def _console(width: int | None = None) -> Any:
    """Rich's console for the terminal, of its width or of another; None where there is no terminal, or no rich."""
    if not sys.stdout.isatty():
        return None
    with contextlib.suppress(ImportError):
        from rich.console import Console  # Late: only whoever has a terminal needs it.

        return Console(highlight=False, width=width)
    return None


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), fold: bool = False
) -> None:
    """Print a table; texts stand as they are.

    Parameters
    ----------
    right : sequence of str
        Headings of columns of numbers.
    fold : bool
        Whether long texts go on in the next line of their column. Keys and paths do not, so that they can be copied.
    """
    console = _console() if fold else _console(_WIDE)
    if console is None:
        print("\n".join(plain_table(headings, rows)))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns, one for each row; the last column is as long as it is."""
    lines = [[heading.upper() for heading in headings], *([text.replace("\n", " ") for text in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings) - 1)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    ]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A bar for ``total`` bytes, on a terminal; nothing elsewhere."""
    console = _console()
    if console is None or not total:
        yield lambda count: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def size_text(size: object) -> str:
    """A size in bytes, of whatever others may have written there."""
    return format_bytes(size) if isinstance(size, (int, float)) and not isinstance(size, bool) else "?"

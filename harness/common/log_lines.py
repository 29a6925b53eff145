"""The lines that this package writes to its log, as people see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from async_ckpt.system import log


@contextlib.contextmanager
def written_with(write: Callable[[str], None]) -> Iterator[None]:
    """Have lines of this process written by a function, as long as this lasts."""
    log.write_lines_with(write)
    try:
        yield
    finally:
        log.write_lines_with(log.to_stderr)


@contextlib.contextmanager
def collected(lines: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the lines of this process, as long as this lasts."""
    lines = [] if lines is None else lines
    with written_with(lines.append):
        yield lines

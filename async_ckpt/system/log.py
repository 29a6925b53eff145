"""What this package tells people: the logger ``async_ckpt``, and where its lines go.

Everything that runs in the task, or in a process of the task, says its lines through a logger below ``async_ckpt``
(``log = logging.getLogger(__name__)``). By default they are written to stderr, each after ``[@checkpoint]``; from which
level on, ``METAFLOW_ASYNC_CKPT_LOG_LEVEL`` says. The agent has no loggers: it tells the task, which then says it here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable

from .undisturbed import say

LOGGER = "async_ckpt"


class Lines(logging.Handler):
    """Hands each line on to a function.

    It takes no lock: a signal's handler may interrupt whoever is writing a line, and then wait for a thread that has
    something to say as well. For the same reason lines of a thread that works for the main one are said by that one.

    Parameters
    ----------
    write : callable
        Gets each line, without its end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def createLock(self) -> None:
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody can read it: no reason to stop working.
            say(self._write, record.getMessage())


def to_stderr(line: str) -> None:
    """Say a line where people see what a subprocess of a task, or a command, has to say."""
    with contextlib.suppress(OSError, ValueError):  # Nobody reads it, or it is closed: no reason to lose a checkpoint.
        print(f"[@checkpoint] {line}", file=sys.stderr, flush=True)


def write_lines_with(write: Callable[[str], None], level: str = "INFO") -> None:
    """From now on lines of this process go to a function, and to nobody else of ours.

    Parameters
    ----------
    write : callable
        Gets each line, without its end.
    level : str
        A name of ``logging``'s, such as ``"WARNING"``: lines below it are left out.
    """
    logger = logging.getLogger(LOGGER)
    for handler in [handler for handler in logger.handlers if isinstance(handler, Lines)]:
        logger.removeHandler(handler)
    logger.addHandler(Lines(write))
    logger.setLevel(level)
    # Or a program that has set up logging for itself would show each line twice.
    logger.propagate = False


write_lines_with(to_stderr)

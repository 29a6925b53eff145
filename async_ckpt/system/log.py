"""What this package tells people: the logger ``async_ckpt``, and where its lines go.

Everything that runs in the task, or in a process of the task, says its lines through a logger below ``async_ckpt``
(``log = logging.getLogger(__name__)``). By default they are written to stderr, each after ``[@checkpoint]``; from which
level on, ``METAFLOW_ASYNC_CKPT_LOG_LEVEL`` says. In a step ``@checkpoint`` sends them through Metaflow's own logger
instead (``plugins/checkpoint_decorator.py`` calls ``write_lines_with``). The agent has no loggers: it tells the task,
which then says it here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable

from ..config import CHOICES, ENV_PREFIX, Config
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
        self._function = write

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        say(self._write, record.getMessage())  # Since Python 3.13 the inherited method wants a lock.
        return True

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody reads it, or it is closed: no reason to lose a save.
            self._function(line)


def to_stderr(line: str) -> None:
    """Say a line where people see what a subprocess of a task, or a command, has to say."""
    print(f"[@checkpoint] {line}", file=sys.stderr, flush=True)


def write_lines_with(write: Callable[[str], None]) -> None:
    """From now on lines of this process go to a function, and to nobody else of ours.

    Parameters
    ----------
    write : callable
        Gets each line, without its end.
    """
    logger = logging.getLogger(LOGGER)
    for handler in [handler for handler in logger.handlers if isinstance(handler, Lines)]:
        logger.removeHandler(handler)
    logger.addHandler(Lines(write))
    # Or a program that has set up logging for itself would show each line twice.
    logger.propagate = False


def set_level(level: str) -> None:
    """Leave out lines below a level, which has the name of one of ``logging``'s, such as ``"WARNING"``."""
    logging.getLogger(LOGGER).setLevel(level)


def _level_of_environment() -> str:
    """The setting; the default where it is wrong, which whoever reads all settings (``Config.from_env``) refuses."""
    level = os.environ.get(f"{ENV_PREFIX}LOG_LEVEL", "")
    return level if level in CHOICES["log_level"] else Config.log_level


write_lines_with(to_stderr)
set_level(_level_of_environment())

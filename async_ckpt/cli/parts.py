"""What several commands need."""

from __future__ import annotations

import argparse
import os

from ..config import ENV_SPOOL, Config
from ..spool.spool import Spool
from ..task.checkpointer import Checkpointer


def is_in_task(options: argparse.Namespace) -> bool:
    """Whether a task is meant: that of the environment, or of the spool that is given."""
    return bool(options.spool or os.environ.get(ENV_SPOOL))


def checkpointer_of(options: argparse.Namespace) -> Checkpointer:
    """That task's.

    Raises
    ------
    UsageError, SpoolError
        There is none, or it has ended.
    """
    if options.spool:
        return Checkpointer(Spool.open(options.spool), Config.from_env())
    return Checkpointer.from_environment()

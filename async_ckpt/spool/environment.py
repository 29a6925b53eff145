"""Finds a task's spool from what its subprocesses inherit."""

from __future__ import annotations

import os

from ..config import ENV_ATTEMPT, ENV_SPOOL
from ..errors import SpoolError, UsageError
from .spool import Spool, comes_back

_WAY_OUT = "Start the process from the step, so that it inherits what the step has"


def spool_of(directory: str, attempt: str | None) -> Spool:
    """The spool of the task whose environment this is.

    Parameters
    ----------
    directory, attempt : str
        The values of ``ENV_SPOOL`` and ``ENV_ATTEMPT``; without the latter, the attempt that runs.

    Raises
    ------
    UsageError
        One of them is not as a task sets it.
    SpoolError
        The task, or this attempt of it, has ended.
    """
    if not os.path.isabs(directory) or "\0" in directory:
        raise UsageError(f"{ENV_SPOOL}={directory!r} is not an absolute path", hint=_WAY_OUT)
    if attempt is not None and not (attempt.isascii() and attempt.isdecimal() and len(attempt) < 10):
        raise UsageError(f"{ENV_ATTEMPT}={attempt!r} is not the number of an attempt", hint=_WAY_OUT)
    path = os.path.join(directory, "spool.json")
    try:
        if not os.path.exists(path):
            comes_back(path)  # If not, the next line says so.
        spool = Spool.open(directory, attempt=None if attempt is None else int(attempt))
    except SpoolError as error:
        if not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            raise
        raise SpoolError(
            f"The task that this process belongs to has ended: the spool that {ENV_SPOOL} names is gone",
            where=directory,
            hint="Nothing can be saved in its name any more: let the step wait for its subprocesses. What it saved is "
            f"shown by Checkpoint().list(task='flow/run/step/task'); unset {ENV_SPOOL} to load it",
        ) from error
    spool.check_attempt()
    return spool

"""Where a task's spool is made, and found again.

A spool holds what is not in the store yet: on a disk that survives the task, not in memory, and for this user alone.
The places, in this order:

1. ``METAFLOW_ASYNC_CKPT_SPOOL_DIR``: who runs a machine knows its disks;
2. ``@checkpoint(temp_dir_root=...)``;
3. ``$TMPDIR``, where that can be used; or ``/tmp``, where that is on a disk;
4. ``/var/tmp``, which is on a disk everywhere; at last ``/tmp`` even in memory.

In each it is ``async-ckpt-<uid>/``; where somebody else has made a directory of that name, ``async-ckpt-<uid>-1`` and
so on. A place that cannot be used (not writable, read-only, full, on a file system that lacks what a spool needs) is
passed over, and that is said. A spool that an earlier attempt has left in any of them comes first.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence

from .. import layout
from ..config import ENV_ATTEMPT, ENV_SPOOL, SPOOLS_PREFIX, Config
from ..errors import NotOurs, SpoolError, UsageError
from ..stores.base import StoreSpec
from ..system.filesystems import kind_of
from .spool import Spool, comes_back

log = logging.getLogger(__name__)

_ON_DISK, _LAST = "/var/tmp", "/tmp"
_IN_MEMORY = ("tmpfs", "ramfs")

#: So many names are tried where others have taken the first ones.
_NAMES = 8

_WAY_OUT = "Start the process from the step, so that it inherits what the step has"


def bases(temp_dir_root: str | None, config: Config) -> list[str]:
    """Directories in which the user's spools may lie, the best first."""
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:  # None that can be written to; the error that follows says so of each.
        usual = _LAST
    # One that cannot be used, or is empty, tempfile has passed over: then nobody has chosen what it found.
    is_chosen = usual == os.path.abspath(os.environ.get("TMPDIR") or "/")
    system = [usual, _ON_DISK] if is_chosen or kind_of(usual) not in _IN_MEMORY else [_ON_DISK, usual]
    # A setting of a pod comes from no shell that knows what ~ is.
    given = [os.path.abspath(os.path.expanduser(base)) for base in (config.spool_dir, temp_dir_root) if base]
    return list(dict.fromkeys([*given, *system, _LAST]))


def places(temp_dir_root: str | None, config: Config) -> list[list[str]]:
    """In each of these directories, the names that the one with this user's spools may have, the first one first."""
    name = f"{SPOOLS_PREFIX}{os.getuid()}"
    names = [name, *(f"{name}-{number}" for number in range(1, _NAMES))]
    return [[os.path.join(base, name) for name in names] for base in bases(temp_dir_root, config)]


def make(places: Sequence[Sequence[str]], task: layout.TaskInfo, store: StoreSpec) -> Spool:
    """Take up the spool of a task that there is, or make one in the first of some ``places`` where that can be done.

    Raises
    ------
    SpoolError
        It can be done in none; says why of each. Or its last agent takes it away in this moment: then the cause is a
        ``FileNotFoundError``, and it can be tried again.
    """
    for root in (root for roots in places for root in roots):
        if Spool.find(root, task, store):
            return Spool.create(root, task, store)
    failed: list[SpoolError] = []
    for roots in places:
        for root in roots:
            try:
                spool = Spool.create(root, task, store)
            except SpoolError as error:
                if isinstance(error.__cause__, FileNotFoundError) and os.path.isdir(root):
                    raise  # Its last agent takes it away in this moment.
                failed.append(error)
                if isinstance(error, NotOurs):
                    continue
                break
            if failed:
                log.info(
                    f"The spool is in {root}, as it cannot be where it should be: {failed[0].what} ({failed[0].where})"
                )
            return spool
    if len(failed) == 1:
        raise failed[0]
    raise SpoolError(
        f"The spool can be made nowhere: {'; '.join(f'{error.what} ({error.where})' for error in failed)}",
        hint="Set METAFLOW_ASYNC_CKPT_SPOOL_DIR to a directory of your own, on a disk with free space",
    ) from failed[0]


def inherited(directory: str, attempt: str | None) -> Spool:
    """The spool of a task, from what its subprocesses inherit in their environment.

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

"""Makes directories that nobody but this user can enter, and makes errors of what the disk refuses."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ..errors import NotOurs, SpoolError, os_hint, os_reason


def private_directory(path: str) -> None:
    """Make a directory that only its owner can enter, and what is missing above it.

    Raises
    ------
    NotOurs
        Somebody else has made it.
    OSError
        It cannot be made.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    private_subdirectory(path)


def private_subdirectory(path: str) -> None:
    """The same below a directory that is there; ``FileNotFoundError`` if that is taken away in this moment."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise not_ours(path)
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o700)


def not_ours(path: str) -> NotOurs:
    """The error for a spool that another user has made."""
    return NotOurs(
        "The spool's directory belongs to somebody else", where=path,
        hint="Remove it, or set METAFLOW_ASYNC_CKPT_SPOOL_DIR to a directory of your own",
    )  # fmt: skip


@contextlib.contextmanager
def spool_errors(what: str, where: str) -> Iterator[None]:
    """Make an error of what the file system of the spool refuses in the block."""
    try:
        yield
    except OSError as error:
        raise SpoolError(f"{what}: {os_reason(error)}", where=where, hint=os_hint(error)) from error

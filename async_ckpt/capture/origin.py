"""What was moved into a spool can go back: a symbolic link beside it says where it stood.

The link is made before the move and stays as long as the data does. So whoever is killed, nothing that was moved and is
not in the store is without a name to go back to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

from ..system.files import NO_LINK

SUFFIX = ".origin"

#: Errors of rename(2) for a directory that mean "something else is there".
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


def origin_path(target: str) -> str:
    """The link that says where the snapshot at ``target`` stood."""
    return f"{target}{SUFFIX}"


def note_origin(target: str, path: str, *, is_folder: bool) -> None:
    """Say that the directory or file ``path`` (absolute) is going to be moved to (a file: into) ``target``."""
    os.symlink(f"{path}/" if is_folder else path, origin_path(target))


def origin_of(target: str) -> str | None:
    """Where what was moved to ``target`` stood; None: nothing was, as far as can be told."""
    with contextlib.suppress(OSError):
        return os.readlink(origin_path(target)).removesuffix("/")
    return None


def give_back(target: str) -> str | None:
    """Put back what was moved to ``target``, never over something else: where its place is taken, beside it.

    Returns
    -------
    str or None
        Where it stands now; None: nothing had been moved there.

    Raises
    ------
    OSError
        It cannot be put back; it is where it was. ``FileNotFoundError``: the directory it stood in is gone.
    """
    try:
        text = os.readlink(origin_path(target))
    except FileNotFoundError:
        return None
    original, is_folder = text.removesuffix("/"), text.endswith("/")
    now = target if is_folder else os.path.join(target, os.path.basename(original))
    place = None
    if os.path.lexists(now):
        place, put = original, _put_folder if is_folder else _put_file
        while not put(now, place):
            place = f"{original}.saved-{secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(origin_path(target))
    if not is_folder:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(target)
    return place


def _put_folder(now: str, place: str) -> bool:
    """False: something is there."""
    try:
        os.rename(now, place)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _put_file(now: str, place: str) -> bool:
    try:
        os.link(now, place)
    except FileExistsError:
        if not os.path.samestat(os.lstat(now), os.lstat(place)):  # Else somebody was killed right here.
            return False
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if os.path.lexists(place):
            return False
        os.rename(now, place)
        return True
    os.unlink(now)
    return True

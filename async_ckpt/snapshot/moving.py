"""``move``: the directory is handed over by rename, for trainers that never touch it again."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import SnapshotError, os_hint, os_reason
from ..manifest import MOVED, FileEntry, Manifest
from .base import Captured, walk


def capture_by_move(path: str, target: str) -> Captured:
    """Rename ``path`` to (a file: into) ``target``, which must not exist yet.

    Raises
    ------
    SnapshotError
        It cannot be moved; it stands where it stood.
    """
    path = os.path.realpath(path)
    manifest = Manifest()
    # The whole tree is looked at first: what cannot be saved must not have been moved.
    for item in walk(path):
        status = os.lstat(item.full)
        mode = stat.S_IMODE(status.st_mode)
        if item.kind == stat.S_IFREG:
            manifest.files.append(FileEntry(item.path, status.st_size, mode, MOVED))
        elif item.kind == stat.S_IFDIR:
            manifest.dirs.append((item.path, mode))
        else:
            manifest.links.append((item.path, os.readlink(item.full)))
    is_file = not os.path.isdir(path)
    try:
        if is_file:
            os.mkdir(target, 0o700)
        now = f"{target}/{os.path.basename(path)}" if is_file else target
        os.rename(path, now)
    except OSError as error:
        if is_file and os.path.isdir(target):
            os.rmdir(target)
        hint = "Use snapshot='auto'" if error.errno == errno.EXDEV else os_hint(error)
        raise SnapshotError(f"Cannot move {path} into the spool: {os_reason(error)}", where=path, hint=hint) from error
    return Captured(manifest, moved=(path, now))

"""``move``: the directory is handed over by rename, for trainers that never touch it again.

It is the only copy until it is in the store. Where it stood is written down before (``origin.py``), so that it is put
back when that comes to nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ..config import Config
from ..errors import SnapshotError, os_hint, os_reason
from ..manifest import MOVED, Directory, FileEntry, Link, Manifest
from ..system.filesystems import is_mounted
from .base import Captured, annex_in
from .origin import give_back, note_origin
from .walk import walk

#: Errors of rename(2) and symlink(2) that mean that this file system, or this pair of them, cannot.
_NEVER_HERE = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP}


def capture_by_move(path: str, target: str, config: Config) -> Captured:
    """Rename ``path`` to (a file: into) ``target``, which must not exist yet.

    Raises
    ------
    SnapshotError
        It cannot be moved; it stands where it stood.
    """
    path = os.path.realpath(path)
    manifest = Manifest()
    # The whole tree is looked at first: what cannot be saved must not have been moved.
    for item in walk(path, config, follow=False):
        status = os.lstat(item.full)
        if item.kind != stat.S_IFLNK and item.full != path and is_mounted(item.full):
            # It would go along, and be emptied when the snapshot is removed.
            raise SnapshotError(
                f"Cannot move {path}: something is mounted in it", where=item.full, hint="Use snapshot='auto'"
            )
        if item.kind == stat.S_IFREG:
            mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
            manifest.files.append(FileEntry(item.path, status.st_size, mode, MOVED, mtime_ns=mtime_ns))
        elif item.kind == stat.S_IFDIR:
            manifest.dirs.append(Directory.of(item.path, status))
        else:
            manifest.links.append(Link(item.path, item.text))
    if annex := annex_in(path):
        raise SnapshotError(
            f"Cannot move {path}: snapshots that wait for the store lie in it", where=annex,
            hint="Use snapshot='auto', or move it before something in it is saved by itself",
        )  # fmt: skip
    is_file = not os.path.isdir(path)
    try:
        note_origin(target, path, is_folder=not is_file)
        if is_file:
            os.mkdir(target, 0o700)
        now = f"{target}/{os.path.basename(path)}" if is_file else target
        os.rename(path, now)
    except OSError as error:
        with contextlib.suppress(OSError):
            give_back(target)  # Nothing is there: what was made for it goes.
        hint = "Use snapshot='auto'" if error.errno in _NEVER_HERE else os_hint(error)
        raise SnapshotError(f"Cannot move {path} into the spool: {os_reason(error)}", where=path, hint=hint) from error
    return Captured(manifest, moved=(path, now))

"""What runs that were killed have left on this machine: spools that no agent looks after, and annexes without a spool.

An agent holds a lock on its spool's directory, and on the annexes; so what can be locked here has none. Where the file
system has no such locks nothing can be told, and nothing is named.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..capture.walk import ANNEX_PREFIX
from ..config import Config
from ..errors import CheckpointError
from ..system.files import remove_tree
from ..system.mounts import down_from_mount, local_mounts
from . import journal, place
from .journal import RELEASED
from .spool import Spool

SPOOL, ANNEX = "spool", "annex"


class Orphan(NamedTuple):
    """One.

    Parameters
    ----------
    kind : str
        ``spool`` or ``annex``.
    where : str
        Its directory.
    age_s : float
        Seconds since anything in it changed.
    size : int
        Bytes that are on the disk for it; of files that are linked from elsewhere as well, none.
    why : str
        In words.
    unsent : int
        How many checkpoints, and additions to their metadata, are in it that are not in the store: they would be lost.
    """

    kind: str
    where: str
    age_s: float
    size: int
    why: str
    unsent: int


def find(config: Config, *, older_than_s: float, beside: Iterable[str] = ()) -> list[Orphan]:
    """All of this user on this machine.

    Parameters
    ----------
    older_than_s : float
        In seconds; what has changed since then is none.
    beside : iterable of str
        Directories on whose file systems annexes are looked for as well. (Spools are in the usual places.)
    """
    now = time.time()
    roots = {root for roots in place.places(None, config) for root in roots if os.path.isdir(root)}
    spools = [path for root in sorted(roots) for path in _directories(root)]
    # An annex is named after its spool's directory, and the inode of that.
    names = {f"{os.path.basename(path).partition('.')[0]}-{os.stat(path).st_ino}" for path in spools}
    found = [orphan for path in spools if (orphan := _spool(path, now)) is not None]
    for above in sorted(_annex_folders({*roots, *beside})):
        for path in _directories(above):
            if os.path.basename(path) not in names and not _is_held(path):
                why = "its spool is in none of the usual places, and no agent holds it"
                found.append(Orphan(ANNEX, path, now - _newest(path), _size(path), why, _saved_in(path)))
    return [orphan for orphan in found if orphan.age_s >= older_than_s]


def remove(orphan: Orphan) -> bool:
    """Remove one. False: an agent has taken it up meanwhile."""
    if _is_held(orphan.where):
        return False
    if orphan.kind == SPOOL:
        gone = f"{orphan.where.partition('.gone-')[0]}.gone-{os.getpid()}"
        try:
            annexes = Spool.open(orphan.where).snapshots.annexes()
        except CheckpointError:  # Its annexes are found by themselves then.
            annexes = []
        os.rename(orphan.where, gone)  # At once: who starts the task again finds all of it or nothing.
        for annex in annexes:
            remove_tree(annex)
        remove_tree(gone)
        return True
    remove_tree(orphan.where)
    with contextlib.suppress(OSError):  # Not empty: another task's annex is beside it.
        os.rmdir(os.path.dirname(orphan.where))
    return True


def _directories(folder: str) -> Iterator[str]:
    """Directories of this user in a folder."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                yield entry.path


def _spool(path: str, now: float) -> Orphan | None:
    if _is_held(path):
        return None
    age_s, size = now - _newest(path), _size(path)
    if ".gone-" in os.path.basename(path):
        return Orphan(SPOOL, path, age_s, size, "its removal was begun, and not ended", 0)
    try:
        spool = Spool.open(path)
        unsent = _unsent(spool)
    except CheckpointError as error:
        return Orphan(SPOOL, path, age_s, size, f"it cannot be read: {error.what}", 0)
    why = f"the task {spool.task.pathspec} and its agent are gone"
    for annex in spool.snapshots.annexes():
        size += _size(annex)
    if unsent:
        why += f"; {unsent} checkpoints, or additions to their metadata, are not in the store: a retry here sends them"
    return Orphan(SPOOL, path, age_s, size, why, unsent)


def _unsent(spool: Spool) -> int:
    known = journal.Reader(spool.path("journal")).look()
    left = sum(not (one in known and known[one].state in RELEASED) for one in spool.records.ids())
    return left + len(spool.annotations.names())


def _saved_in(annex: str) -> int:
    """How many snapshots may be in an annex whose spool is not known here."""
    return sum(not name.endswith((".buffer", ".early")) for name in os.listdir(annex))


def _annex_folders(paths: set[str]) -> set[str]:
    """Where annexes are, at the top of file systems or on the way down to some paths."""
    name = f"{ANNEX_PREFIX}{os.getuid()}"
    folders = set(local_mounts())
    for path in {*paths, os.getcwd(), os.path.expanduser("~")}:
        folders |= set(down_from_mount(os.path.realpath(path)))
    return {found for folder in folders if os.path.isdir(found := os.path.join(folder, name))}


def _is_held(directory: str) -> bool:
    """Whether an agent holds it, or may: nobody can tell where there are no locks."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True  # It is gone, or not ours to look at.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def _newest(folder: str) -> float:
    """When something in a folder, or in a folder of it, changed last; seconds since 1970."""
    newest = os.stat(folder).st_mtime
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            newest = max(newest, entry.stat(follow_symlinks=False).st_mtime if entry.name != "data" else 0.0)
    return newest


def _size(folder: str) -> int:
    size = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(above, name))
                size += status.st_blocks * 512 if status.st_nlink == 1 else 0
    return size

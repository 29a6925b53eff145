"""What a spool needs of the mount it is made on, tried there before anything depends on it.

A file system that lacks something (vfat has no sockets, an NFS whose lock service is down no locks) would fail in the
middle of a training. So what some lack is tried at the start of the task. A place that lacks something is passed over,
and the error names the way out. Where saves only take longer, the log says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Callable

from ..errors import SpoolError, os_reason
from ..system.files import can_clone, remove_tree, try_lock
from ..system.filesystems import is_local, kind_of, leases_hold

#: Errors that come from the moment or from permissions, not from what the file system can do.
_NOT_ITS_NATURE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO,
    errno.ENOENT, errno.ESTALE, errno.EINTR,
})  # fmt: skip

_CONTENT = b"async-ckpt"


def try_out(root: str) -> list[str]:
    """Try what a spool needs and some file systems lack, in the directory that is to hold it; about half a millisecond.

    Returns
    -------
    list of str
        What people should know of a spool there. Usually nothing.

    Raises
    ------
    SpoolError
        A spool cannot work there; says what cannot be done.
    OSError
        It cannot be tried: no space, no permission.
    """
    kind = kind_of(root)
    folder = tempfile.mkdtemp(dir=root, prefix=f"abilities-{os.getpid()}-")
    try:
        for ability, attempt in _NEEDED.items():
            try:
                done = attempt(folder)
                why = "" if done else "it has no effect"
            except OSError as error:
                if error.errno in _NOT_ITS_NATURE:
                    raise
                why = os_reason(error)
            if why:
                raise SpoolError(
                    f"The spool cannot be in {root}: its file system ({kind}) cannot {ability} ({why})", where=root,
                    hint="Set METAFLOW_ASYNC_CKPT_SPOOL_DIR, or temp_dir_root, to a directory on a local disk with "
                    "ext4, xfs or btrfs",
                )  # fmt: skip
        return _notes(root, folder, kind)
    finally:
        remove_tree(folder)


def _notes(root: str, folder: str, kind: str) -> list[str]:
    notes = []
    if os.stat(folder).st_mode & 0o077:
        notes.append(
            f"Other users of this machine may read what is saved: the file system of the spool, {root}, keeps no "
            f"permissions ({kind}). METAFLOW_ASYNC_CKPT_SPOOL_DIR sets another place"
        )
    if not leases_hold(kind) and not can_clone(folder):
        shared = "" if is_local(kind) else ", and whether anybody on another machine writes cannot be seen"
        notes.append(
            f"The spool, {root}, is on {kind}, where files cannot be captured as guarded links{shared}: a save() of "
            "large files there takes as long as copying them. temp_dir_root, or METAFLOW_ASYNC_CKPT_SPOOL_DIR, on an "
            "ext4, xfs or btrfs (in a container: a volume) makes that a millisecond"
        )
    return notes


def _replace(folder: str) -> bool:
    old, new = os.path.join(folder, "old"), os.path.join(folder, "new")
    for path, content in ((old, b""), (new, _CONTENT)):
        with open(path, "wb") as file:
            file.write(content)
    os.rename(new, old)
    return os.stat(old).st_size == len(_CONTENT) and not os.path.exists(new)


def _link(folder: str) -> bool:
    path = os.path.join(folder, "symlink")
    os.symlink(os.curdir, path)
    return os.readlink(path) == os.curdir and os.path.samefile(path, folder)


def _lock(folder: str) -> bool:
    fds = [os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for _ in range(2)]
    try:
        return [try_lock(fd) for fd in fds] == [True, False]
    finally:
        for fd in fds:
            os.close(fd)


def _listen(folder: str) -> bool:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"/proc/self/fd/{fd}/sock"  # A path of any length would not do.
        with (
            contextlib.closing(socket.socket(socket.AF_UNIX)) as listening,
            contextlib.closing(socket.socket(socket.AF_UNIX)) as client,
        ):
            listening.bind(name)
            listening.listen(1)
            client.setblocking(False)
            client.connect(name)
        return True
    finally:
        os.close(fd)


#: What cannot be done without, in words that continue "its file system cannot …".
_NEEDED: dict[str, Callable[[str], bool]] = {
    "replace files by renaming": _replace,
    "make symbolic links": _link,
    "lock files (flock)": _lock,
    "have Unix sockets": _listen,
}

"""Makes a snapshot's link a file of its own: the second half of the copy-on-write (see ``lease.py``)."""

from __future__ import annotations

import contextlib
import os
import secrets

from ..errors import SnapshotError, os_reason
from ..system.files import clone, copy_range, take_place
from . import lease


class PrivateCopy:
    """The copy in the making, piece by piece.

    Nobody can write to the file while its lease stands. So a copy may be begun long before anybody comes: only what is
    left of it is waited for then.

    Parameters
    ----------
    path : str
        The link inside the snapshot.
    fd : int
        The leased descriptor.
    size : int
        As captured, in bytes.
    folder : str, optional
        Where it is made, on the same file system; default: beside the link. Its name begins with this process's number,
        as those of snapshots do: what a killed process leaves is swept away.
    """

    def __init__(self, path: str, fd: int, size: int, folder: str = "") -> None:
        self._path, self._fd, self._size = path, fd, size
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._temporary = os.path.join(folder or os.path.dirname(path), name)
        self._target = -1
        self.done = 0
        #: Whether it took no time because the file system shares the blocks.
        self.cloned = False

    @property
    def left(self) -> int:
        """Bytes that are not copied yet."""
        return self._size - self.done

    @property
    def begun(self) -> bool:
        """Whether anything was done; a file without a byte has nothing left from the start."""
        return self._target >= 0

    def advance(self, count: int) -> None:
        """Copy up to ``count`` bytes more; everything where the file system can clone.

        Raises
        ------
        OSError
            As ``read`` and ``write`` do.
        SnapshotError
            The file has become shorter.
        """
        if self._target < 0:
            self._target = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if clone(self._fd, self._target, self._size):
                self.cloned, self.done = True, min(self._size, os.fstat(self._target).st_size)
        if self.left:
            copied = copy_range(self._fd, self._target, min(count, self.left), self.done)
            self.done += copied
            if not copied:
                raise rewritten(self._path)

    def take_its_place(self) -> None:
        """Make the complete copy the snapshot's file."""
        take_place(self._temporary, self._path)
        os.close(self._target)
        self._target = -1

    def drop(self) -> None:
        """Remove what there is of it, unless it has taken its place."""
        if self._target >= 0:
            os.close(self._target)
            self._target = -1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


def rewritten(path: str) -> SnapshotError:
    """The error for a file that was written to before it was copied."""
    return SnapshotError("The file was rewritten before it could be copied", where=path)


def lost(path: str, error: OSError | SnapshotError) -> SnapshotError:
    """Remove a snapshot's link that could not be replaced, so that torn bytes can never be taken for the snapshot.

    Returns the error that says so.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if isinstance(error, SnapshotError):
        return error
    return SnapshotError(f"A file could not be made private: {os_reason(error)}", where=path)


def link_private(donor: str, path: str) -> None:
    """Replace a snapshot's link by a link to ``donor``, a private copy of the same inode."""
    temporary = os.path.join(os.path.dirname(path), f"{os.getpid()}-{secrets.token_hex(8)}")
    os.link(donor, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def make_private(path: str, fd: int, size: int, mtime_ns: int) -> bool:
    """Replace the snapshot's link ``path`` by a copy, in one go, while the lease on ``fd`` still holds writers off.

    Parameters
    ----------
    path : str
        The link inside the snapshot.
    fd : int
        The leased descriptor; it stays open.
    size, mtime_ns : int
        As captured (bytes, nanoseconds).

    Returns
    -------
    bool
        False if somebody (the agent, or the saver for a dead agent) was here before.

    Raises
    ------
    SnapshotError
        The copy failed, or the file had been written to (the kernel broke the lease by force). The link is removed.
    """
    if not lease.is_of(fd, path):
        return False
    copy = PrivateCopy(path, fd, size)
    try:
        copy.advance(size)
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise rewritten(path)
        copy.take_its_place()
        return True
    except (OSError, SnapshotError) as error:
        copy.drop()
        if not lease.is_of(fd, path):
            return False  # Somebody else was quicker, and let the lease go under our copy: theirs is good.
        raise lost(path, error) from error

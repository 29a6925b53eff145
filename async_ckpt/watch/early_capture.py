"""Capturing entries before it is known whether they are finished.

A trainer removes, renames and rewrites as it likes, and only later it is known whether what it wrote was finished. So
what stands still for a moment is captured: hard links to its files are put into the spool. That keeps no writer
waiting, and takes no room as long as the originals are there. Later it is saved like any directory, or dropped.

A link shares its content with the original. If somebody writes to that, the link's size or time changes as well; then
the capture is dropped. So two kinds of files are copied instead, up to a limit: those of an entry whose name has no
number, as it is probably used again and rewritten in place; and those that cannot be linked.

A capture lies where snapshots lie, and has its process in its name. So when that is killed, it is removed with them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
from collections.abc import Callable, Collection

from ..agent.backlog import is_short_of_disk
from ..config import Config
from ..errors import CheckpointError, os_reason
from ..system.files import NO_LINK, copy_content, remove_tree, set_mtime
from .captured import EarlyCapture, at, open_without_waiting
from .entry import Entry
from .tree import Fact, Tree, fact_of, read_tree

log = logging.getLogger(__package__)


class _Changed(Exception):
    """It changes right now."""


class EarlyCaptures:
    """Captures entries of one watched directory.

    Parameters
    ----------
    root : str
        The directory.
    new_directory : callable
        From a path to the name of a new directory in the spool, on the same file system if that can be.
    config : Config
        ``watch_held``, ``watch_copy_bytes``, ``watch_hold_files``.
    """

    def __init__(self, root: str, new_directory: Callable[[str], str], config: Config) -> None:
        self._root, self._new_directory, self._config = root, new_directory, config
        self._captures: list[EarlyCapture] = []
        self._logged: set[str] = set()

    def capture(self, entry: Entry, *, finished: bool = False) -> EarlyCapture | None:
        """Capture an entry as it is. None: that is not possible now.

        ``finished``: it counts as finished already. Then the limits do not count.
        """
        if not finished and len(entry.tree) > self._config.watch_hold_files:
            why = f"it has more than {self._config.watch_hold_files} files"
        elif not finished and is_short_of_disk(self._root, self._config):
            why = "the disk is nearly full"
        elif not finished and len(self._captures) >= self._config.watch_held:
            why = f"{len(self._captures)} others wait"
        else:
            try:
                self._captures.append(self._capture(entry, finished=finished))
                return self._captures[-1]
            except (_Changed, FileNotFoundError):
                return None
            except OSError as error:
                why = os_reason(error)
            except CheckpointError as error:
                why = str(error)
        if why not in self._logged:
            self._logged.add(why)
            until = "" if finished else " before it counts as finished"
            lost = "" if finished else ". If it is removed or written anew before that, it is not saved"
            log.warning(f"{entry.path} cannot be captured{until}: {why}{lost}")
        return None

    def drop_all_but(self, needed: Collection[EarlyCapture]) -> None:
        """Drop the others: they are saved, or of no use."""
        for captured in self._captures:
            if captured not in needed:
                captured.drop()
        self._captures = [captured for captured in self._captures if captured in needed]

    def _capture(self, entry: Entry, *, finished: bool) -> EarlyCapture:
        base = os.path.join(self._root, entry.base)
        folder = self._new_directory(os.path.join(base, next(iter(entry.members), "")).rstrip("/"))
        os.mkdir(folder, 0o700)
        try:
            target = os.path.join(folder, os.path.basename(entry.path))
            if "" not in entry.tree:
                os.mkdir(target, 0o700)
            room = self._config.watch_copy_bytes - sum(captured.copied for captured in self._captures)
            if finished:
                room = sys.maxsize
            is_reused = not finished and not any(letter.isdigit() for letter in entry.path)
            copied = _rebuild(entry.tree, base, target, room, copying=is_reused and entry.tree.size <= room)
            if entry.read(self._root) != entry.tree:
                raise _Changed
            is_copy = len(copied) == len(entry.tree.files)
            size = sum(copied.values())
            tree, made = Tree(entry.tree), read_tree(target)
            return EarlyCapture(folder, target, base, tree, made, size, is_copy, entry.trackers)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(folder)
            raise


def _rebuild(tree: Tree, base: str, target: str, room: int, *, copying: bool) -> dict[str, int]:
    """Make the same tree at ``target``, with links where that can be, or ``copying`` all; at most ``room`` bytes are
    copied. Returns the bytes of each file that was.
    """
    copied: dict[str, int] = {}
    for path in sorted(tree):
        fact, source, made = tree[path], at(base, path), at(target, path)
        if fact.kind == stat.S_IFDIR:
            os.mkdir(made, 0o700)
            os.chmod(made, stat.S_IMODE(os.lstat(source).st_mode) | 0o700)
        elif fact.kind == stat.S_IFLNK:
            os.symlink(_link_from(source, base), made)
        elif fact.kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "it holds something that is neither file, directory nor link")
        elif copying or not _link(source, made):
            if sum(copied.values()) + fact.size > room:
                raise OSError(errno.EFBIG, f"it cannot be linked, and copies have {room} bytes of room")
            _copy(source, made, fact)
            copied[path] = fact.size
        elif fact_of(os.lstat(made)) != fact:
            raise _Changed
    return copied


def _link(source: str, made: str) -> bool:
    try:
        os.link(source, made, follow_symlinks=False)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise
    return True


def _link_from(link: str, base: str) -> str:
    """The target of a symbolic link, for its copy. A target outside of what is captured is made absolute."""
    text = os.readlink(link)
    at = os.path.normpath(os.path.join(os.path.dirname(link), text))
    return text if at.startswith(base + os.sep) and not os.path.isabs(text) else at


def _copy(source: str, made: str, fact: Fact) -> None:
    fd = open_without_waiting(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        target = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(fd, target, fact.size)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
        finally:
            os.close(target)
        set_mtime(made, status.st_mtime_ns)
        if fact_of(os.fstat(fd)) != fact or os.lstat(made).st_size != fact.size:
            raise _Changed
    finally:
        os.close(fd)

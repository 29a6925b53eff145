"""Capturing early: what an entry looks like at one moment, kept in the spool, and not a checkpoint yet.

A trainer removes, renames and rewrites as it pleases, and whether what it wrote was finished is only known later. So
what stands still for a moment is *held*: a tree of hard links to its files, which takes as long as there are files,
keeps no writer waiting, and needs no disk as long as the originals are there. Later it is saved like any directory, or
dropped. Links are no copies: what is written into a file afterwards is in the held one as well, and shows in its size
or time; then it is dropped. So two kinds of files are copied, where that costs little: what bears a name that is used
again and again (without a number), as it is likely to be rewritten in place; and what cannot be linked.

It lies where snapshots lie, named after its process: whoever sweeps up after one that was killed removes it as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..agent.backlog import is_short_of_disk
from ..config import Config
from ..errors import CheckpointError, os_reason
from ..system.files import clone, copy_range, remove_tree, set_mtime
from ..system.writers import open_for_writing
from . import tree as trees
from .departed import Kept
from .entry import Entry
from .tree import Fact, Tree, fact_of, inodes, read_tree

#: How much of each end of a file is compared, in bytes.
_END_BYTES = 64 << 10

#: Where the file system, or whose the file is, forbids a link.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)


@dataclass(frozen=True, eq=False)
class Held:
    """An entry as it was at one moment.

    ``path`` is what can be saved in its stead, ``origin`` what its paths were relative to; ``tree`` is how the entry
    looked, and ``facts`` how ``path`` did. Of its bytes, ``copied`` are the spool's own; ``lasts``: nothing of it is
    the trainer's. ``beside`` goes with it when it is saved.
    """

    folder: str
    path: str
    origin: str
    tree: Tree
    facts: Tree
    copied: int
    lasts: bool
    beside: Mapping[str, bytes]

    def goes_on(self) -> bool:
        """Whether the original has all of it still, and perhaps more: it is written on, and not anew. Of large files,
        both ends are compared.
        """
        files = [path for path, fact in self.facts.items() if fact.kind == stat.S_IFREG]
        try:
            return all(_begins_like(_at(self.origin, path), _at(self.path, path)) for path in files)
        except OSError:
            return False

    def complete(self) -> None:
        """Add what goes with it (see ``group``)."""
        for name, content in self.beside.items():
            with open(os.path.join(self.path, name), "wb") as file:
                file.write(content)

    def is_intact(self) -> bool:
        """Whether it is what was captured, and nobody is about to write to it."""
        now = {path: fact for path, fact in read_tree(self.path).items() if path not in self.beside}
        return now == self.facts and not open_for_writing(inodes(self.facts))

    def drop(self) -> None:
        """Give its room back."""
        with contextlib.suppress(OSError):  # It is swept up after this process.
            remove_tree(self.folder)


class _Moved(Exception):
    """It changes right now."""


class Holding:
    """Holds entries of one watched directory.

    Parameters
    ----------
    root : str
        The directory.
    place : callable
        From a path to the name of a new directory in the spool, on the same file system if that can be.
    config : Config
        ``watch_held``, ``watch_copy_bytes``, ``watch_hold_files``.
    report : callable
        Gets lines for people.
    """

    def __init__(self, root: str, place: Callable[[str], str], config: Config, report: Callable[[str], None]) -> None:
        self._root, self._place, self._config, self._report = root, place, config, report
        self._held: list[Held] = []
        self._said: set[str] = set()

    def hold(self, entry: Entry, *, early: bool = True) -> Held | None:
        """Hold an entry as it is. None: it cannot be now, and must last until it counts as finished. ``early``: it does
        not count yet, and limits hold.
        """
        why = ""
        if early and len(entry.tree) > self._config.watch_hold_files:
            why = f"it has more than {self._config.watch_hold_files} files"
        elif early and is_short_of_disk(self._root, self._config):
            why = "the disk is nearly full"
        elif early and len(self._held) >= self._config.watch_held:
            why = f"{len(self._held)} others wait"
        else:
            try:
                held = self._capture(entry, early=early)
                self._held.append(held)
                return held
            except (_Moved, FileNotFoundError):
                return None
            except OSError as error:
                why = os_reason(error)
            except CheckpointError as error:
                why = str(error)
        if why not in self._said:
            self._said.add(why)
            until = " before it counts as finished" if early else ""
            lost = ". If it is removed or written anew before that, it is not saved" if early else ""
            self._report(f"{entry.path} cannot be captured{until}: {why}{lost}")
        return None

    def keep(self, needed: Collection[Kept]) -> None:
        """Drop all others: they are saved, or of no use."""
        for held in self._held:
            if held not in needed:
                held.drop()
        self._held = [held for held in self._held if held in needed]

    # -- capturing -------------------------------------------------------------------------------------------------

    def _capture(self, entry: Entry, *, early: bool) -> Held:
        base = os.path.join(self._root, entry.base)
        folder = self._place(os.path.join(base, next(iter(entry.members), "")).rstrip("/"))
        os.mkdir(folder, 0o700)
        try:
            target = os.path.join(folder, os.path.basename(entry.path))
            if "" not in entry.tree:
                os.mkdir(target, 0o700)
            left = self._config.watch_copy_bytes - sum(held.copied for held in self._held) if early else sys.maxsize
            # A name without a number is used again, and perhaps without a new file.
            is_reused = early and not any(letter.isdigit() for letter in entry.path)
            copying = is_reused and trees.size(entry.tree) <= left
            copied = self._rebuild(entry.tree, base, target, left, copying=copying)
            if entry.read(self._root) != entry.tree:
                raise _Moved
            files = [path for path, fact in entry.tree.items() if fact.kind == stat.S_IFREG]
            facts, size, lasts = read_tree(target), sum(copied.values()), len(copied) == len(files)
            return Held(folder, target, base, dict(entry.tree), facts, size, lasts, entry.beside)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(folder)
            raise

    def _rebuild(self, tree: Tree, base: str, target: str, left: int, *, copying: bool) -> dict[str, int]:
        """Make the same tree at ``target``. Returns the bytes of each file that was copied."""
        copied: dict[str, int] = {}
        for path in sorted(tree):
            fact, source, made = tree[path], _at(base, path), _at(target, path)
            if fact.kind == stat.S_IFDIR:
                os.mkdir(made, 0o700)
                os.chmod(made, stat.S_IMODE(os.lstat(source).st_mode) | 0o700)
            elif fact.kind == stat.S_IFLNK:
                os.symlink(_link_from(source, base), made)
            elif fact.kind != stat.S_IFREG:
                raise OSError(errno.EINVAL, "it holds something that is neither file, directory nor link")
            elif copying or not _link(source, made):
                if sum(copied.values()) + fact.size > left:
                    raise OSError(errno.EFBIG, f"it cannot be linked, and copies have {left} bytes of room")
                _copy(source, made, fact)
                copied[path] = fact.size
            elif fact_of(os.lstat(made)) != fact:
                raise _Moved
        return copied


def _at(base: str, path: str) -> str:
    return os.path.join(base, path) if path else base


def _begins_like(path: str, copy: str) -> bool:
    """Whether a file begins with the content of another one, as both ends of that tell."""
    with open(path, "rb", opener=_quietly) as file, open(copy, "rb") as before:
        end = os.fstat(before.fileno()).st_size
        for at in {0, max(end - _END_BYTES, 0)}:
            count = min(_END_BYTES, end - at)
            if os.pread(file.fileno(), count, at) != os.pread(before.fileno(), count, at):
                return False
    return True


def _quietly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _link(source: str, made: str) -> bool:
    try:
        os.link(source, made, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _link_from(link: str, base: str) -> str:
    """Where a symbolic link leads; one that leads out of what is held leads there from everywhere."""
    text = os.readlink(link)
    at = os.path.normpath(os.path.join(os.path.dirname(link), text))
    return text if at.startswith(base + os.sep) and not os.path.isabs(text) else at


def _copy(source: str, made: str, fact: Fact) -> None:
    fd = _quietly(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        target = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not clone(fd, target):
                copy_range(fd, target, fact.size)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
        finally:
            os.close(target)
        set_mtime(made, status.st_mtime_ns)
        if fact_of(os.fstat(fd)) != fact or os.lstat(made).st_size != fact.size:
            raise _Moved
    finally:
        os.close(fd)

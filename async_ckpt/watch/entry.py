"""An entry of a watched directory: the files in it, what a look at it tells, and what is known of it by now."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ..config import WATCH_STILL_S
from .names import is_ours

if TYPE_CHECKING:
    from .early_capture import EarlyCapture


class Fact(NamedTuple):
    """What the file system knows of one file, folder or link; of a folder only its kind. ``size`` is in bytes."""

    kind: int
    device: int
    inode: int
    size: int
    mtime_ns: int


class Tree(dict[str, Fact]):
    """What an entry looks like: relative path → fact. An entry that is a file has itself, under the empty path."""

    @property
    def files(self) -> dict[str, Fact]:
        """The regular files."""
        return {path: fact for path, fact in self.items() if fact.kind == stat.S_IFREG}

    @property
    def inodes(self) -> set[tuple[int, int]]:
        """(device, inode) of the regular files."""
        return {(fact.device, fact.inode) for fact in self.files.values()}

    @property
    def has_files(self) -> bool:
        """Whether there is anything but folders in it."""
        return any(fact.kind != stat.S_IFDIR for fact in self.values())

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(fact.size for fact in self.values())

    @property
    def newest_ns(self) -> int:
        """When something in it was last written to, in nanoseconds of the file system's clock."""
        return max((fact.mtime_ns for fact in self.values()), default=0)

    @property
    def fingerprint(self) -> frozenset[tuple[str, Fact]]:
        """The same for trees that look the same."""
        return frozenset(self.items())

    def identity(self, root: str, relative: str, name: str) -> str:
        """16 hex digits for an entry with these files, sizes and times, saved as ``name``; the same in every process.

        The watched directory counts, as each rank may have one: files of the same names and sizes, written in the same
        tick of the kernel's clock, are still others. Inodes do not count: some file systems number them anew when they
        are mounted.
        """
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, (root, relative, name))))
        for path in sorted(self):
            fact = self[path]
            digest.update(b"\0%s\0%d %d %d" % (os.fsencode(path), fact.kind, fact.size, fact.mtime_ns))
        return digest.hexdigest()[:16]


def fact_of(status: os.stat_result) -> Fact:
    """What is told of one file, folder or link."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        return Fact(kind, status.st_dev, status.st_ino, 0, 0)  # What changes in it has facts of its own.
    return Fact(kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_tree(path: str) -> Tree:
    """What is at ``path`` now; empty if nothing is. What vanishes meanwhile is not in it.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    tree = Tree()
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return Tree({"": fact_of(status)})
    pending = [""]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(path, folder)) as items:
            for item in items:
                if is_ours(item.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    tree[folder + item.name] = fact = fact_of(item.stat(follow_symlinks=False))
                    if fact.kind == stat.S_IFDIR:
                        pending.append(f"{folder}{item.name}/")
    return tree


def read_members(folder: str, members: Sequence[str]) -> Tree:
    """What is there of several files and directories in one folder: the tree of a directory that has them alone.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    tree = Tree()
    for name in members:
        with contextlib.suppress(FileNotFoundError):
            tree[name] = fact_of(os.lstat(os.path.join(folder, name)))
            below = read_tree(os.path.join(folder, name)) if tree[name].kind == stat.S_IFDIR else {}
            tree.update({f"{name}/{path}": fact for path, fact in below.items()})
    return tree


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts ``checkpoint-9`` before ``checkpoint-10``."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", text)]


class Look(NamedTuple):
    """One entry as it was just seen."""

    tree: Tree
    #: The file that says that it is finished.
    marker: Fact | None = None
    #: Whether it was renamed into place since the last look.
    renamed: bool = False
    #: Of a group of files (see ``group``): their names in its folder, and small files that name it, by name.
    members: tuple[str, ...] = ()
    trackers: Mapping[str, bytes] = {}
    #: A file that must still come; empty if none.
    lacks: str = ""


@dataclass
class Entry:
    """An entry, and what is known of it. ``marker``, ``renamed``, ``members`` and ``lacks`` are as in ``Look``."""

    path: str
    tree: Tree
    #: When it last changed or was open for writing, as far as looks tell (seconds of the recogniser's clock).
    changed_at: float
    #: The trainer began them in this order.
    order: int
    marker: Fact | None = None
    renamed: bool = False
    #: Whether somebody has a file of it open for writing.
    is_open: bool = False
    #: When it was first seen or last changed, on the recogniser's clock, whether it is open or not. None: the log has
    #: said since then that it waits for whoever has it open.
    unchanged_since: float | None = None
    #: How it looked when it was saved; None: it was not yet.
    saved: Tree | None = None
    #: It lost files since it was saved, and gained nothing.
    is_being_removed: bool = False
    #: It was there when the watch began, or came later with older times, and was not written to since.
    is_old: bool = False
    #: An earlier attempt wrote it last, perhaps not to its end.
    is_leftover: bool = False
    #: How often it could not be removed from the disk.
    failed_removals: int = 0
    members: tuple[str, ...] = ()
    #: The last that was seen of each small file that names it.
    trackers: dict[str, bytes] = field(default_factory=dict)
    lacks: str = ""
    #: What was captured of it, before it counted as finished, when it had stood still for ``still_s`` seconds.
    captured: EarlyCapture | None = None
    still_s: float = WATCH_STILL_S

    @property
    def base(self) -> str:
        """The path to which those in its tree are relative."""
        return os.path.dirname(self.path) if self.members else self.path

    def read(self, root: str) -> Tree:
        """How it looks now.

        Raises
        ------
        OSError
            A folder cannot be read.
        """
        base = os.path.join(root, self.base)
        return read_members(base, self.members) if self.members else read_tree(base)

    @property
    def is_confirmed(self) -> bool:
        """Whether the trainer says that it is finished as it is now: nothing in it is newer than the marker."""
        return self.marker is not None and self.marker.mtime_ns >= self.tree.newest_ns

    @property
    def must_be_closed(self) -> set[tuple[int, int]]:
        """(device, inode) of the files that nobody may have open for writing: the marker, where it confirms the rest;
        otherwise all.
        """
        if self.marker is not None and self.is_confirmed:
            return {(self.marker.device, self.marker.inode)}
        return self.tree.inodes

    @property
    def is_unsaved(self) -> bool:
        """Whether there is something in it that was not saved."""
        return self.tree != self.saved and not self.is_being_removed and self.tree.has_files

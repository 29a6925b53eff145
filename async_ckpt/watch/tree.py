"""The files of an entry: what the file system knows of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from .names import is_ours


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

"""What an entry of a watched directory looks like: the files in it, and what the file system knows of each."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from ..capture.walk import ANNEX_PREFIX
from .names import is_ours

#: An entry that is removed from the disk stands under this name first, so that nobody takes what is left for a
#: checkpoint.
REMOVED_PREFIX = f"{ANNEX_PREFIX}removed-"


class Fact(NamedTuple):
    """One file, folder or link of a tree; of a folder only what it is. ``size`` in bytes, ``mtime_ns`` nanoseconds."""

    kind: int
    device: int
    inode: int
    size: int
    mtime_ns: int


#: Relative path → fact; a file has itself, under the empty path.
Tree = dict[str, Fact]


def read_tree(path: str) -> Tree:
    """What is at ``path`` now; empty if nothing is. What vanishes meanwhile is not in it.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    tree: Tree = {}
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return {"": fact_of(status)}
    pending = [""]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(path, folder)) as entries:
            for entry in entries:
                if is_ours(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    tree[folder + entry.name] = fact = fact_of(entry.stat(follow_symlinks=False))
                    if fact.kind == stat.S_IFDIR:
                        pending.append(f"{folder}{entry.name}/")
    return tree


def read_members(folder: str, members: Sequence[str]) -> Tree:
    """What is there of several files and directories in one folder: the tree of a directory that has them alone.

    Raises
    ------
    OSError
        A folder cannot be read.
    """
    tree: Tree = {}
    for name in members:
        with contextlib.suppress(FileNotFoundError):
            tree[name] = fact_of(os.lstat(os.path.join(folder, name)))
            below = read_tree(os.path.join(folder, name)) if tree[name].kind == stat.S_IFDIR else {}
            tree.update({f"{name}/{path}": fact for path, fact in below.items()})
    return tree


def fact_of(status: os.stat_result) -> Fact:
    """What is told of one file, folder or link."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        return Fact(kind, status.st_dev, status.st_ino, 0, 0)  # What changes in it has facts of its own.
    return Fact(kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def inodes(tree: Tree) -> set[tuple[int, int]]:
    """(device, inode) of the regular files."""
    return {(fact.device, fact.inode) for fact in tree.values() if fact.kind == stat.S_IFREG}


def is_file(fact: Fact) -> bool:
    """Whether it is a regular file."""
    return fact.kind == stat.S_IFREG


def has_files(tree: Tree) -> bool:
    """Whether there is anything but folders in it."""
    return any(fact.kind != stat.S_IFDIR for fact in tree.values())


def size(tree: Tree) -> int:
    """Bytes in all."""
    return sum(fact.size for fact in tree.values())


def newest_ns(tree: Tree) -> int:
    """When something in it was last written to, in nanoseconds of the file system's clock."""
    return max((fact.mtime_ns for fact in tree.values()), default=0)


def identity(root: str, relative: str, name: str, tree: Tree) -> str:
    """16 hex digits for this entry with these files, sizes and mtimes, saved as ``name``; the same in every process.

    With the watched directory, as each rank may have one: files of the same names and sizes, written in the same tick
    of the kernel's clock, are still others. Without inodes: some file systems number them anew when they are mounted.
    """
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, (root, relative, name))))
    for path in sorted(tree):
        fact = tree[path]
        digest.update(b"\0%s\0%d %d %d" % (os.fsencode(path), fact.kind, fact.size, fact.mtime_ns))
    return digest.hexdigest()[:16]


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts ``checkpoint-9`` before ``checkpoint-10``."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", text)]

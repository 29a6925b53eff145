"""What lies in a watched directory: which entries match, and what each looks like now.

Symbolic links are neither followed nor entries. Of nested matches only the outermost counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..config import is_spools_name
from ..errors import UsageError
from ..snapshot.walk import ANNEX_PREFIX

#: Names under which programs write what they rename when it is finished.
UNFINISHED = ("*.tmp", "*.tmp.*", "*.tmp-*", "*-tmp-*", "tmp-*", "*.part", "*.partial", "*.incomplete", "*.lock", "*~")

#: An entry that is removed from the disk stands under this name first, so that nobody takes what is left for a
#: checkpoint.
REMOVED_PREFIX = f"{ANNEX_PREFIX}removed-"

#: How deep below the directory ``**`` looks.
_MAX_DEPTH = 16


class Fact(NamedTuple):
    """One file, folder or link of a tree; of a folder only what it is. ``size`` in bytes, ``mtime_ns`` nanoseconds."""

    kind: int
    device: int
    inode: int
    size: int
    mtime_ns: int


#: Relative path → fact; a file has itself, under the empty path.
Tree = dict[str, Fact]


class Pattern:
    """Which paths below a watched directory are checkpoints.

    Parameters
    ----------
    text : str
        A shell pattern of the relative path: ``checkpoint-*``, ``*.ckpt``, ``run-*/checkpoint-*``; ``**/`` stands for
        any number of folders.

    Raises
    ------
    UsageError
        It can match nothing below the directory.
    """

    def __init__(self, text: str) -> None:
        parts = text.split("/") if isinstance(text, str) else []
        if not parts or any(part in ("", ".", "..") for part in parts) or parts[-1] == "**":
            raise UsageError(
                f"pattern={text!r} is no pattern of names below the directory", hint="E.g. 'checkpoint-*', '**/*.ckpt'"
            )
        self.text = text
        self._depth = _MAX_DEPTH if "**" in parts else len(parts)
        self._parts = parts

    def matches(self, relative: str) -> bool:
        """Whether this is the path of a checkpoint that may be finished."""
        names = relative.split("/")
        return _fits(self._parts, names) and not any(fnmatchcase(names[-1], item) for item in UNFINISHED)

    def find(self, root: str) -> Iterator[str]:
        """Relative paths of what matches now, none of them inside another.

        Raises
        ------
        OSError
            The directory itself cannot be read; a folder in it that cannot is passed over.
        """
        pending = [("", 1)]
        while pending:
            folder, depth = pending.pop()
            try:
                with os.scandir(os.path.join(root, folder)) as entries:
                    for entry in entries:
                        relative = folder + entry.name
                        if _is_ours(entry.name) or entry.is_symlink():
                            continue
                        if self.matches(relative):
                            yield relative
                        elif depth < self._depth and entry.is_dir(follow_symlinks=False):
                            pending.append((f"{relative}/", depth + 1))
            except OSError:
                if not folder:
                    raise


def _fits(parts: Sequence[str], names: Sequence[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_fits(parts[1:], names[skipped:]) for skipped in range(len(names)))
    return fnmatchcase(names[0], parts[0]) and _fits(parts[1:], names[1:])


def _is_ours(name: str) -> bool:
    return name.startswith(ANNEX_PREFIX) or is_spools_name(name)


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
            return {"": _fact(status)}
    pending = [""]
    while pending:
        folder = pending.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(path, folder)) as entries:
            for entry in entries:
                if _is_ours(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    tree[folder + entry.name] = fact = _fact(entry.stat(follow_symlinks=False))
                    if fact.kind == stat.S_IFDIR:
                        pending.append(f"{folder}{entry.name}/")
    return tree


def _fact(status: os.stat_result) -> Fact:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        return Fact(kind, status.st_dev, status.st_ino, 0, 0)  # What changes in it has facts of its own.
    return Fact(kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def inodes(tree: Tree) -> set[tuple[int, int]]:
    """(device, inode) of the regular files."""
    return {(fact.device, fact.inode) for fact in tree.values() if fact.kind == stat.S_IFREG}


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

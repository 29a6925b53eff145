"""What was captured of an entry before it counted as finished."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..system.files import remove_tree
from ..system.writers import open_for_writing
from .tree import Tree, read_tree

#: How much of each end of a file is compared, in bytes.
_END_BYTES = 64 << 10


@dataclass(frozen=True, eq=False)
class EarlyCapture:
    """An entry as it was at one moment, before it counted as finished."""

    #: The directory in the spool; ``path`` is in it.
    folder: str
    #: What can be saved in the entry's stead.
    path: str
    #: The path to which those in ``tree`` are relative.
    base: str
    #: How the entry looked.
    tree: Tree
    #: How ``path`` looked when it was captured.
    made: Tree
    #: Bytes of it that are copies.
    copied: int
    #: Whether it shares no file with the original, and stays as it is whatever is written there.
    is_copy: bool
    #: Small files that name the entry, by name.
    trackers: Mapping[str, bytes]

    def is_continued(self) -> bool:
        """Whether the original still begins with what was captured: its writer goes on, and has not begun anew. Of
        large files only both ends are compared.
        """
        try:
            return all(_begins_with(at(self.base, path), at(self.path, path)) for path in self.made.files)
        except OSError:
            return False

    def add_trackers(self) -> None:
        """Put the small files that name it, such as TensorFlow's ``checkpoint``, into it."""
        for name, content in self.trackers.items():
            with open(os.path.join(self.path, name), "wb") as file:
                file.write(content)

    def is_intact(self) -> bool:
        """Whether it is what was captured, and nobody is about to write to it."""
        now = {path: fact for path, fact in read_tree(self.path).items() if path not in self.trackers}
        return now == self.made and not open_for_writing(self.made.inodes)

    def drop(self) -> None:
        """Give back its room."""
        with contextlib.suppress(OSError):  # Then it is removed after this process.
            remove_tree(self.folder)


def _begins_with(path: str, copy: str) -> bool:
    """Whether a file begins with the content of another one. Only both ends of that are compared."""
    with open(path, "rb", opener=open_without_waiting) as file, open(copy, "rb") as before:
        end = os.fstat(before.fileno()).st_size
        for begin in {0, max(end - _END_BYTES, 0)}:
            count = min(_END_BYTES, end - begin)
            if os.pread(file.fileno(), count, begin) != os.pread(before.fileno(), count, begin):
                return False
    return True


def at(base: str, path: str) -> str:
    """The path of a file of an entry; an empty one is the entry itself."""
    return os.path.join(base, path) if path else base


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file, and not what a link leads to; a pipe, or a file with a lease, keeps nobody waiting."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)

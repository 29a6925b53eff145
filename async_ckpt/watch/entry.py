"""What is known of one entry of a watched directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from . import tree as trees
from .departed import Kept
from .tree import Fact, Tree, read_members, read_tree

#: What has stood still for so many seconds is captured, to be there when it is gone before it counts as finished; each
#: time that this was too early, it must stand still for twice as long.
MOMENT_S = 0.1


class Look(NamedTuple):
    """One entry as it was just seen. ``marker``: the file that says that it is finished; ``renamed``: it came by a
    rename since the last look.
    """

    tree: Tree
    marker: Fact | None = None
    renamed: bool = False
    #: Names in its folder, where it is a group of them (see ``group``), and small files that go with it.
    members: tuple[str, ...] = ()
    beside: Mapping[str, bytes] = {}
    #: A file that must come yet.
    lacks: str = ""


@dataclass
class Entry:
    """One that matched, and what is known of it."""

    path: str
    tree: Tree
    #: When it last changed or was open for writing, by the recogniser's clock, as far as looks tell (seconds).
    changed_at: float
    #: In which order the trainer began them.
    order: int
    marker: Fact | None = None
    renamed: bool = False
    #: Somebody has a file of it open for writing; and since when, without a change, until that was reported.
    is_open: bool = False
    open_since: float | None = None
    #: How it looked when it was saved; None: not yet.
    saved: Tree | None = None
    #: It lost files since it was saved, and gained nothing.
    leaving: bool = False
    #: Was there when the watch began, or came later with older times, and was not written to since.
    is_old: bool = False
    #: The last that an earlier attempt wrote to, perhaps not to its end.
    is_orphan: bool = False
    #: How often it could not be removed from the disk.
    stuck: int = 0
    #: As in ``Look``; of what went with it, what was last seen.
    members: tuple[str, ...] = ()
    beside: dict[str, bytes] = field(default_factory=dict)
    lacks: str = ""
    #: What was captured of it when it stood still; and for how long it must, in seconds.
    held: Kept | None = None
    moment_s: float = MOMENT_S

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
    def marked(self) -> bool:
        """Whether the trainer says, or said once, that it is finished."""
        return self.marker is not None

    @property
    def is_confirmed(self) -> bool:
        """Whether the trainer says that it is finished as it is now: nothing in it is newer than the marker."""
        return self.marker is not None and self.marker.mtime_ns >= trees.newest_ns(self.tree)

    @property
    def evidence(self) -> set[tuple[int, int]]:
        """(device, inode) of the files which nobody may have open for writing: of the marker, which says more than a
        descriptor does, or else of all.
        """
        if self.marker is not None and self.is_confirmed:
            return {(self.marker.device, self.marker.inode)}
        return trees.inodes(self.tree)

    @property
    def is_due(self) -> bool:
        """Whether there is something in it that was not saved."""
        return self.tree != self.saved and not self.leaving and trees.has_files(self.tree)

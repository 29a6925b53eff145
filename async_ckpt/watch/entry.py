"""An entry of a watched directory: what a look at it tells, and what is known of it by now."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..config import WATCH_STILL_S
from .captured import EarlyCapture
from .tree import Fact, Tree, read_members, read_tree


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

"""Whether what is gone was a finished checkpoint.

It is decided later, when more is known than at the moment at which it went. Two kinds of trainers finish checkpoints
that do not stay: one keeps only a few, and removes the oldest when it has written the next; another uses the same name
again. But halves go as well: a writer fails and tries again, or somebody tidies up after a trainer that was killed.

So what is gone was captured early (it stood still, and nobody had it open for writing). It counts as finished if it
lacks no file that another one of its kind has. That other one must be whole: it is saved, or it stood still and yet
another one was begun after it. In addition, one of these must hold:

- another one had been begun when it was removed;
- its files are about as large as those of the other one. A half that is begun anew is smaller than a whole.

As long as there is no other one to compare with, it waits for one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .captured import EarlyCapture
from .names import is_temporary
from .tree import Tree

#: Names of files that nobody has chosen: a UUID; or eight characters or more in which letters and digits take turns,
#: such as the digests by which Orbax names its files.
_RANDOM = re.compile(
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|"
    r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*(\d[A-Za-z]+\d|[A-Za-z]\d+[A-Za-z]))[A-Za-z0-9]{8,}(?![A-Za-z0-9])"
)

#: A file is about as large as another one if it has this share of its size.
_ABOUT = 0.9
#: Only files that make up at least this share of a checkpoint are compared by size.
_WORTH = 0.05


@dataclass
class Gone:
    """An entry that was removed, or whose name another one has taken, as it was captured before."""

    path: str
    captured: EarlyCapture
    #: The trainer began entries in this order.
    order: int
    #: Another entry was begun before this one went.
    followed: bool
    #: Its name is still there, for another one.
    rewritten: bool = False
    #: Its files are older than the watch.
    is_old: bool = False

    @property
    def tree(self) -> Tree:
        """How it looked."""
        return self.captured.tree


class Verdict(NamedTuple):
    """Whether it was a whole checkpoint (None: nobody knows yet), and why, in words."""

    whole: bool | None
    why: str


class Other(NamedTuple):
    """An entry to compare with. ``is_whole``: it is known to be; one that is not may be half itself."""

    tree: Tree
    is_whole: bool


def judge(gone: Gone, others: Iterable[Other], *, last: bool) -> Verdict:
    """Whether it was a whole checkpoint.

    Parameters
    ----------
    others : iterable of Other
        Those of its kind, or with the same files, that are saved or stood still.
    last : bool
        Nothing more will become known.
    """
    verdict, may_be_whole = Verdict(None, "nothing tells whether it was finished"), "" in gone.tree
    for other, is_whole in others:
        if missing := lacking(gone.tree, other):
            verdict = Verdict(None, f"it lacked {missing}, which another one has")
        elif not is_whole:
            may_be_whole = True
        elif gone.followed and not gone.rewritten:
            return Verdict(True, "removed after the next one was begun")
        elif _is_about_as_large(gone.tree, other):
            return Verdict(True, "written anew" if gone.rewritten else "removed, and as large as another one")
        else:
            verdict = Verdict(None, "it was smaller than another one")
    if not last:
        return verdict
    # A single file lacks no other, and one that looks like the newest is as good as that one.
    if gone.followed and not gone.rewritten and may_be_whole:
        return Verdict(True, "removed after the next one was begun")
    return Verdict(False, verdict.why)


def kind_of(path: str) -> str:
    """A name without its numbers: by them the checkpoints of one trainer differ."""
    return re.sub(r"\d+", "#", path)


def kind_of_file(path: str) -> str:
    """The same of a file in a checkpoint, without random parts as well."""
    return kind_of(_RANDOM.sub("#", path))


def shape_of(tree: Tree) -> Counter[str]:
    """Names of what is in it, without what differs from one checkpoint to the next, and without what will have another
    name when it is finished.
    """
    return Counter(kind_of_file(path) for path in tree if not is_temporary(os.path.basename(path)))


def lacking(tree: Tree, other: Tree) -> str:
    """A file that ``other`` has and this one has not; empty if there is none."""
    return min(shape_of(other) - shape_of(tree), default="")


def _is_about_as_large(tree: Tree, other: Tree) -> bool:
    mine, theirs, worth = _sizes(tree), _sizes(other), _WORTH * other.size
    return all(mine[name] >= _ABOUT * size for name, size in theirs.items() if size >= worth)


def _sizes(tree: Tree) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for path, fact in tree.items():
        sizes[kind_of_file(path)] += fact.size
    return sizes

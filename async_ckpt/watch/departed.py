"""Whether what is gone was a checkpoint: decided when more is known than in the moment in which it went (pure).

A trainer with a limit on how many checkpoints it keeps removes the oldest once it has written another; one that reuses
a name writes the next over it. Both say that what was there had been finished. But half a checkpoint is removed as
well, by a writer that failed and tries again, or by whoever tidies up after one that was killed. So what is gone (and
was still before it went, nobody had it open for writing, and it was held just as it was) counts as finished only if it
lacks nothing that another one of its kind has, one that is known to be whole, or that stood still and was followed by
yet another; and if

- another was begun after it, when it was removed;
- or else its files are about as large as those of the other one. A half that is begun anew is smaller than the whole.

Where there is no other one to compare with, it waits for one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from . import tree as trees
from .tree import Tree

#: Names of files that nobody has chosen: a UUID; eight characters or more in which letters and digits take turns, as in
#: the digests by which Orbax calls its files.
_DRAWN = re.compile(
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|"
    r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*(\d[A-Za-z]+\d|[A-Za-z]\d+[A-Za-z]))[A-Za-z0-9]{8,}(?![A-Za-z0-9])"
)

#: Files about as large as others: so much of their size at least, in those that make up so much of the whole.
_ABOUT, _WORTH = 0.9, 0.05


class Kept(Protocol):
    """What was captured of an entry (``held.Held``)."""

    @property
    def tree(self) -> Tree: ...

    @property
    def path(self) -> str:
        """What can be saved in its stead."""

    @property
    def lasts(self) -> bool:
        """Whether it stays as it is, whatever becomes of the original."""

    def goes_on(self) -> bool:
        """Whether the original has all of it still, and perhaps more: it is written on, and not anew."""

    def complete(self) -> None:
        """Add small files that go with it."""

    def is_intact(self) -> bool:
        """Whether it is what was captured, and nobody is about to write to it."""


@dataclass
class Departed:
    """An entry that is gone, or whose place another one has taken; ``held`` is as it was.

    ``order`` is that in which entries were begun. ``followed``: another one was begun before it went. ``rewritten``:
    its name is there still, for another one.
    """

    path: str
    held: Kept
    order: int
    followed: bool
    rewritten: bool = False
    #: Was there before its trainer began, as far as its times tell.
    is_old: bool = False
    #: When it was seen to be gone, by the recogniser's clock (seconds).
    at: float = 0.0

    @property
    def tree(self) -> Tree:
        return self.held.tree


class Verdict(NamedTuple):
    """``whole``: it was a checkpoint; None: nobody knows yet. ``why`` in words."""

    whole: bool | None
    why: str


class Other(NamedTuple):
    """One to compare with. ``is_sure``: it is not the newest, which may be half itself, or is saved."""

    tree: Tree
    is_sure: bool


def judge(departed: Departed, others: Iterable[Other], *, last: bool) -> Verdict:
    """Whether it was a whole checkpoint.

    Parameters
    ----------
    others : iterable of Other
        Those of its kind, or with the same files, that are whole or stood still.
    last : bool
        No more will come to be known.
    """
    verdict, is_like_one = Verdict(None, "nothing tells whether it was finished"), "" in departed.tree
    for other, is_sure in others:
        if missing := lacking(departed.tree, other):
            verdict = Verdict(None, f"it lacked {missing}, which another one has")
        elif not is_sure:
            is_like_one = True
        elif departed.followed and not departed.rewritten:
            return Verdict(True, "removed after the next one was begun")
        elif _is_about_as_large(departed.tree, other):
            return Verdict(True, "written anew" if departed.rewritten else "removed, and as large as another one")
        else:
            verdict = Verdict(None, "it was smaller than another one")
    if not last:
        return verdict
    if departed.followed and not departed.rewritten and is_like_one:  # One file lacks no other.
        return Verdict(True, "removed after the next one was begun")
    return Verdict(False, verdict.why)


def kind_of(path: str) -> str:
    """A name without its numbers: checkpoints of a trainer differ by them."""
    return re.sub(r"\d+", "#", path)


def kind_of_file(path: str) -> str:
    """The same of a file in a checkpoint, of which other parts differ as well."""
    return kind_of(_DRAWN.sub("#", path))


def shape_of(tree: Tree) -> Counter[str]:
    """Names of what is in it, without what differs from one to the next."""
    return Counter(kind_of_file(path) for path in tree)


def lacking(tree: Tree, other: Tree) -> str:
    """A file that ``other`` has and this one has not; empty if there is none."""
    return next(iter(sorted(shape_of(other) - shape_of(tree))), "")


def _is_about_as_large(tree: Tree, other: Tree) -> bool:
    worth = _WORTH * trees.size(other)
    mine, theirs = _sizes(tree), _sizes(other)
    return all(mine[name] >= _ABOUT * size for name, size in theirs.items() if size >= worth)


def _sizes(tree: Tree) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for path, fact in tree.items():
        sizes[kind_of_file(path)] += fact.size
    return sizes

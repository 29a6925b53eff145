"""Explains to users why a watch saved nothing: what is in the directory instead, and what would have to change. At the
end it also names what was ignored although it looks like a checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from ..config import WATCH_EXPLAIN_S
from .entry import Entry
from .names import UNFINISHED, Pattern, is_ours
from .options import WatchOptions

log = logging.getLogger(__package__)

#: So many names are looked at, so deep.
_MAX_NAMES, _MAX_DEPTH = 5000, 8
#: How many names a line tells, and of how many links the targets are looked at.
_MAX_TOLD, _MAX_LINKS = 3, 10


class Explanation:
    """Says why a watch saves nothing.

    Parameters
    ----------
    root : str
        The watched directory.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, root: str, options: WatchOptions, clock: Callable[[], float]) -> None:
        self._root, self._options, self._clock = root, options, clock
        self._has_found = False
        self._say_at = clock() + WATCH_EXPLAIN_S

    def note(self, found: Collection[str]) -> None:
        """The entries in ``found`` are there now. After some time without any, says once what is there instead."""
        self._has_found = self._has_found or bool(found)
        if not self._has_found and self._clock() > self._say_at and has_names(self._root):
            self._say_at = math.inf
            log.warning(f"so far, {why_nothing(self._root, self._options.pattern)}")

    def say_why_nothing_was_saved(self, entries: Collection[Entry]) -> None:
        """The watch ends, and has saved nothing. Says why, unless something else was said."""
        empty = [entry.path for entry in entries if not entry.tree.has_files]
        if not self._has_found:
            log.warning(f"nothing is saved: {why_nothing(self._root, self._options.pattern)}")
        elif empty and len(empty) == len(entries):
            log.warning(f"nothing is saved: there are no files in {_some(empty)}")
        elif entries and all(entry.saved is not None for entry in entries):
            why = "was saved before" if self._options.existing else "was there before, and existing=False leaves that"
            log.info(f"nothing is saved: all that fits {why}")

    def say_what_was_passed_over(self) -> None:
        """The watch ends, and has saved something. Says what would fit as well, were it not for its name."""
        pattern = Pattern(self._options.pattern)
        names = list(_names(self._root))
        if found := [name.relative for name in names if not name.is_link and _is_passed_over(pattern, name)]:
            log.warning(
                f"left out: {_some(sorted(found))}, by name unfinished. A pattern that says so itself takes such names "
                "as well"
            )
        if links := [name.relative for name in names if name.is_link and _leads_out(self._root, pattern, name)]:
            log.warning(
                f"left out: {_some(sorted(links))}: links are not followed, and nothing here is what they lead to"
            )


class _Name(NamedTuple):
    relative: str
    is_link: bool
    is_folder: bool


def why_nothing(root: str, text: str) -> str:
    """Why nothing in a directory fits a pattern, in words, and what would have to be changed."""
    pattern, names = Pattern(text), sorted(_names(root))
    why = _links(root, pattern, names) or _excluded(pattern, names) or _elsewhere(pattern, names) or _others(names)
    return f"nothing in {root} fits pattern={text!r}: {why}"


def has_names(root: str) -> bool:
    """Whether there is anything in a directory that this package has not made."""
    return next(_names(root), None) is not None


def _names(root: str) -> Iterator[_Name]:
    pending, left = [("", 1)], _MAX_NAMES
    while pending:
        folder, depth = pending.pop()
        try:
            items = sorted(os.scandir(os.path.join(root, folder)), key=lambda item: item.name)
        except OSError:
            continue
        for item in items:
            if is_ours(item.name):
                continue
            is_folder = item.is_dir(follow_symlinks=False)
            yield _Name(folder + item.name, item.is_symlink(), is_folder)
            if is_folder and depth < _MAX_DEPTH:
                pending.append((f"{folder}{item.name}/", depth + 1))
            left -= 1
            if not left:
                return


def _links(root: str, pattern: Pattern, names: list[_Name]) -> str:
    """That something fits, but is a link, or lies behind one; empty if not."""
    found = [name.relative for name in names if name.is_link and pattern.fits(name.relative)]
    if not found:
        links = [name for name in names if name.is_link][:_MAX_LINKS]
        return next(filter(None, (_behind(root, pattern, link) for link in links)), "")
    target = os.path.realpath(os.path.join(root, found[0]))
    return (
        f"{_some(found)} would, but {_is_are(found)} symbolic link{'s'[: len(found) > 1]}, and links are not followed. "
        f"{found[0]} leads to {target}: watch that, by its own name"
    )


def _behind(root: str, pattern: Pattern, link: _Name) -> str:
    """That a link leads to a directory in which something would fit; empty if not."""
    target = os.path.realpath(os.path.join(root, link.relative))
    anywhere = Pattern(f"**/{pattern.text.rpartition('/')[2]}")
    found = next((name.relative for name in _names(target) if anywhere.matches(name.relative)), "")
    return found and (
        f"{link.relative} is a symbolic link, and links are not followed. In {target}, where it leads, there is "
        f"{found}: watch that directory, by its own name"
    )


def _excluded(pattern: Pattern, names: list[_Name]) -> str:
    """That something fits, but for what its name says; empty if not."""
    found = [name.relative for name in names if pattern.fits(name.relative) and pattern.excludes(name.relative)]
    if not found:
        return ""
    return (
        f"{_some(found)} would, but {found[0]} {pattern.excludes(found[0])}. A pattern that says so itself takes such "
        "names as well"
    )


def _is_passed_over(pattern: Pattern, name: _Name) -> bool:
    """Whether it fits, is no part of another one that does, and has a name of something unfinished."""
    relative = name.relative
    while relative := os.path.dirname(relative):
        if pattern.matches(relative):
            return False
    return pattern.fits(name.relative) and pattern.excludes(name.relative) == UNFINISHED


def _leads_out(root: str, pattern: Pattern, link: _Name) -> bool:
    """Whether a link that would fit leads to something that is not in the watched directory."""
    target = os.path.realpath(os.path.join(root, link.relative))
    is_out = os.path.exists(target) and not target.startswith(os.path.realpath(root) + os.sep)
    return is_out and pattern.matches(link.relative)


def _elsewhere(pattern: Pattern, names: list[_Name]) -> str:
    """That something would fit in another folder, or in other letters; empty if not."""
    last = pattern.text.rpartition("/")[2]
    anywhere, lower = Pattern(f"**/{last}"), Pattern(f"**/{last.lower()}")
    found = [name.relative for name in names if anywhere.matches(name.relative)]
    if found:
        deeper = [relative for relative in found if "/" in relative]
        better = f"**/{last}" if deeper else last
        has_value = any("=" in name for relative in deeper for name in relative.split("/"))
        slash = " (a '/' in a name, as in 'val/loss', makes a folder)" if has_value else ""
        return f"{_some(deeper or found)} would with pattern={better!r}{slash}"
    found = [name.relative for name in names if lower.matches(name.relative.lower())]
    return f"{_some(found)} would, were it not for capital letters" if found else ""


def _others(names: list[_Name]) -> str:
    """What is there instead."""
    # A folder in which there is something is told by what is in it.
    inside = {name.relative.rpartition("/")[0] for name in names}
    found = [name.relative + "/"[: name.is_folder] for name in names if name.relative not in inside]
    top = sorted({relative.partition("/")[0] + "/"[: "/" in relative] for relative in found})
    return f"there is {_some(top)}" if top else "it is empty"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_TOLD} more" if len(names) > _MAX_TOLD else ""
    return ", ".join(names[:_MAX_TOLD]) + more


def _is_are(names: list[str]) -> str:
    return "is a" if len(names) == 1 else "are"

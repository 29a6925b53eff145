"""Why nothing was saved: what is in the watched directory, and why none of it is a checkpoint. And what is left there
although it looks like one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from . import tree as trees
from .entry import Entry
from .names import UNFINISHED, Pattern, is_ours
from .options import WatchOptions

#: So many names are looked at, so deep, and so many are told; and behind so many links it is looked.
_NAMES, _DEPTH, _TOLD, _LINKS = 5000, 8, 3, 10


#: After so many seconds without anything that fits the log says what is there instead.
_AFTER_S = 60.0


class Nothing:
    """Says why a watch saves nothing.

    Parameters
    ----------
    root : str
        The watched directory.
    report : callable
        Gets lines for people.
    """

    def __init__(self, root: str, options: WatchOptions, report: Callable[[str], None]) -> None:
        self._root, self._options, self._report = root, options, report
        self._has_seen = False
        self._say_at = time.monotonic() + _AFTER_S

    def look(self, found: Collection[str]) -> None:
        """What fits was ``found`` now. Says once, after some time, that nothing did, if there is something else."""
        self._has_seen = self._has_seen or bool(found)
        if not self._has_seen and time.monotonic() > self._say_at and has_names(self._root):
            self._say_at = math.inf
            self._report(f"so far, {why_nothing(self._root, self._options.pattern)}")

    def end(self, entries: Collection[Entry]) -> None:
        """The watch ends, and has saved nothing. Says why, where nothing else does."""
        empty = [entry.path for entry in entries if not trees.has_files(entry.tree)]
        if not self._has_seen:
            self._report(f"nothing is saved: {why_nothing(self._root, self._options.pattern)}")
        elif empty and len(empty) == len(entries):
            self._report(f"nothing is saved: there are no files in {_some(empty)}")
        elif entries and all(entry.saved is not None for entry in entries):
            why = "was saved before" if self._options.existing else "was there before, and existing=False leaves that"
            self._report(f"nothing is saved: all that fits {why}")

    def left_out(self) -> None:
        """The watch ends, and has saved something. Says what would fit as well, were it not for its name."""
        pattern = Pattern(self._options.pattern)
        names = list(_names(self._root))
        found = [name.relative for name in names if not name.is_link and _is_passed_over(pattern, name)]
        if found:
            self._report(
                f"left out: {_some(sorted(found))}, by name unfinished. A pattern that says so itself takes such names "
                "as well"
            )
        if links := [name.relative for name in names if name.is_link and _leads_out(self._root, pattern, name)]:
            self._report(
                f"left out: {_some(sorted(links))}: links are not followed, and nothing here is what they lead to"
            )


class _Name(NamedTuple):
    relative: str
    is_link: bool
    is_folder: bool


def why_nothing(root: str, text: str) -> str:
    """Why there is nothing in a directory that a pattern means, in words, with what would have to be changed."""
    pattern, names = Pattern(text), sorted(_names(root))
    said = _links(root, pattern, names) or _excluded(pattern, names) or _elsewhere(pattern, names) or _others(names)
    return f"nothing in {root} fits pattern={text!r}: {said or _empty(root, pattern)}"


def has_names(root: str) -> bool:
    """Whether there is anything in a directory, but for what this package makes."""
    return next(_names(root), None) is not None


def _names(root: str) -> Iterator[_Name]:
    pending, left = [("", 1)], _NAMES
    while pending:
        folder, depth = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if is_ours(entry.name):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            yield _Name(folder + entry.name, entry.is_symlink(), is_folder)
            if is_folder and depth < _DEPTH:
                pending.append((f"{folder}{entry.name}/", depth + 1))
            left -= 1
            if not left:
                return


def _links(root: str, pattern: Pattern, names: list[_Name]) -> str:
    found = [name.relative for name in names if name.is_link and pattern.fits(name.relative)]
    if not found:
        links = [name for name in names if name.is_link][:_LINKS]
        return next(filter(None, (_behind(root, pattern, link) for link in links)), "")
    target = os.path.realpath(os.path.join(root, found[0]))
    return (
        f"{_some(found)} would, but {_is_are(found)} symbolic link{'s'[: len(found) > 1]}, and links are not followed. "
        f"{found[0]} leads to {target}: watch that, by its own name"
    )


def _behind(root: str, pattern: Pattern, link: _Name) -> str:
    """That a link leads to a directory in which there is something that would fit; empty if it does not."""
    target = os.path.realpath(os.path.join(root, link.relative))
    anywhere = Pattern(f"**/{pattern.text.rpartition('/')[2]}")
    found = next((name.relative for name in _names(target) if anywhere.matches(name.relative)), "")
    said = (
        f"{link.relative} is a symbolic link, and links are not followed. In {target}, where it leads, there is {found}"
    )
    return f"{said}: watch that directory, by its own name" if found else ""


def _excluded(pattern: Pattern, names: list[_Name]) -> str:
    found = [(name.relative, why) for name in names if pattern.fits(name.relative) and (why := _why(pattern, name))]
    if not found:
        return ""
    some = _some([relative for relative, _ in found])
    return f"{some} would, but {found[0][0]} {found[0][1]}. A pattern that says so itself takes such names as well"


def _why(pattern: Pattern, name: _Name) -> str:
    return pattern.excludes(name.relative)


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
    # Folders in which there is something are told by what is in them.
    inside = {name.relative.rpartition("/")[0] for name in names}
    found = [name.relative + "/"[: name.is_folder] for name in names if name.relative not in inside]
    top = sorted({relative.partition("/")[0] + "/"[: "/" in relative] for relative in found})
    return f"there is {_some(top)}" if top else ""


def _empty(root: str, pattern: Pattern) -> str:
    """It is empty; perhaps the next directory was meant."""
    parent = os.path.dirname(root)
    try:
        beside = [entry.path for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        beside = []
    for folder in sorted(beside)[:100]:
        if folder != root and not is_ours(os.path.basename(folder)):
            try:
                found = next(iter(pattern.find(folder)), None)
            except OSError:
                continue
            if found:
                return f"it is empty, but {os.path.join(folder, found)} would. Is that the directory to watch?"
    return "it is empty"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def _is_are(names: list[str]) -> str:
    return "is a" if len(names) == 1 else "are"

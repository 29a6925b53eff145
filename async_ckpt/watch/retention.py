"""Gives back the disk: removes what was saved (``move``), or is in the store and not among the newest (``keep``)."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from ..capture.snapshot import annex_in
from ..capture.walk import ANNEX_PREFIX
from ..errors import os_reason
from ..system.files import remove_tree
from ..system.writers import open_for_writing
from .already_saved import AlreadySaved
from .entry import Entry
from .options import WatchOptions
from .recogniser import Recogniser
from .tree import read_tree

log = logging.getLogger(__package__)

#: An entry gets this name before it is removed, so that nobody takes what is left of it for a checkpoint.
_REMOVED_PREFIX = f"{ANNEX_PREFIX}removed-"

#: How many ``keep`` removes between two looks, as it takes time to remove a large one.
_REMOVED_AT_A_TIME = 8
#: About how many the agent is asked between two looks.
_ASKED_AT_A_TIME = 64


def remove_leftovers(root: str) -> None:
    """Finish what a watch that was killed had begun to remove."""
    for name in os.listdir(root):
        if name.startswith(_REMOVED_PREFIX):
            _remove(os.path.join(root, name))


def retain(root: str, options: WatchOptions, recogniser: Recogniser, already_saved: AlreadySaved) -> list[Entry]:
    """Remove what need not stay on the disk. Returns what was removed.

    With ``move`` that is all that this watch has saved and nobody has open for writing. With ``keep`` it is what is in
    the store, without the ``keep`` newest of all that were saved.
    """
    saved = [e for e in recogniser.entries.values() if e.saved is not None and e.saved == e.tree]
    if options.move:
        mine = [entry for entry in saved if already_saved.is_mine(entry.path)]
        is_open = open_for_writing(set().union(*(entry.must_be_closed for entry in mine)))
        closed = [entry for entry in mine if entry.must_be_closed.isdisjoint(is_open)]
        return [entry for entry in closed if _try_to_remove(root, entry, "is saved")]
    if options.keep is None:
        return []
    saved.sort(key=lambda entry: entry.order)
    removed: list[Entry] = []
    tries = _REMOVED_AT_A_TIME
    # Those that could not be removed come last, so that they do not hold up the others.
    older = sorted(saved[: max(len(saved) - options.keep, 0)], key=lambda entry: entry.failed_removals)
    for entry in _in_store(older, already_saved):
        is_removed = _try_to_remove(root, entry, "is in the store")
        removed += [entry] if is_removed else []
        tries -= is_removed is not None
        if not tries:
            break
    return removed


def _in_store(entries: list[Entry], already_saved: AlreadySaved) -> Iterator[Entry]:
    asked = 0
    for entry in entries:
        ask = asked < _ASKED_AT_A_TIME and already_saved.is_mine(entry.path)
        asked += ask
        if already_saved.is_in_store(entry.path, ask=ask):
            yield entry


def _try_to_remove(root: str, entry: Entry, why: str) -> bool | None:
    """Remove an entry, and say so. False: it cannot be removed; None: it is not just as it was saved any more."""
    try:
        if not _take_away(root, entry):
            return None
        log.info(f"{entry.path} is removed from the disk: it {why}")
        return True
    except OSError as error:
        if not entry.failed_removals:
            log.warning(f"{entry.path} {why}, but cannot be removed from the disk: {os_reason(error)}")
        entry.failed_removals += 1
        return False


def _take_away(root: str, entry: Entry) -> bool:
    """Remove an entry. False: it is not just as it was saved any more, and stays.

    Raises
    ------
    OSError
        It cannot be removed.
    """
    base, away = os.path.join(root, entry.base), os.path.join(root, _REMOVED_PREFIX + secrets.token_hex(8))
    with contextlib.suppress(FileNotFoundError):
        # Snapshots of files in it, which were saved by themselves, may still wait for the store in there.
        if entry.read(root) != entry.saved or (not entry.members and annex_in(base)):
            return False
        # Renamed first: otherwise, if this process was killed meanwhile, half a checkpoint would be left.
        if not entry.members:
            os.rename(base, away)
            if read_tree(away) != entry.saved:
                os.rename(away, base)
                return False
        else:
            os.mkdir(away)
            for name in entry.members:
                os.rename(os.path.join(base, name), os.path.join(away, name))
        _remove(away)
        return True
    return False


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except OSError as error:
        log.warning(f"{path}, which nobody needs any more, cannot be removed: {os_reason(error)}")

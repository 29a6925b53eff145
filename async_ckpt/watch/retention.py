"""Room on the disk: what was saved (``move``), or is in the store and not among the newest (``keep``), is removed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable

from ..capture.base import annex_in
from ..errors import os_reason
from ..system.files import remove_tree
from ..system.writers import open_for_writing
from .entry import Entry
from .options import WatchOptions
from .recogniser import Recogniser
from .saving import Saving
from .tree import REMOVED_PREFIX, read_tree

#: So many are removed between two looks, as a large one takes time, and of so many the agent is asked.
_AT_A_TIME, _QUESTIONS = 8, 64


def remove_leftovers(root: str, report: Callable[[str], None]) -> None:
    """Finish what a watch that was killed had begun to remove."""
    for name in os.listdir(root):
        if name.startswith(REMOVED_PREFIX):
            _remove(os.path.join(root, name), report)


def retain(
    root: str, options: WatchOptions, recogniser: Recogniser, saving: Saving, report: Callable[[str], None]
) -> list[Entry]:
    """Remove what need not stay on the disk. Returns what was removed.

    With ``move`` that is what this watch has saved, unless somebody has it open for writing; with ``keep`` what is
    committed and not among so many of the newest that were saved.
    """
    if options.move:
        return _remove_saved(root, recogniser, saving, report)
    return _remove_committed(root, options.keep, recogniser, saving, report) if options.keep is not None else []


def _remove_saved(root: str, recogniser: Recogniser, saving: Saving, report: Callable[[str], None]) -> list[Entry]:
    saved = [e for e in recogniser.entries.values() if e.saved == e.tree and saving.has_saved(e.path)]
    is_open = open_for_writing(set().union(*(entry.evidence for entry in saved)))
    return [
        entry
        for entry in saved
        if entry.evidence.isdisjoint(is_open) and _try_to_take_away(root, entry, "is saved", report)
    ]


def _remove_committed(
    root: str, keep: int, recogniser: Recogniser, saving: Saving, report: Callable[[str], None]
) -> list[Entry]:
    saved = [entry for entry in recogniser.entries.values() if entry.saved is not None and entry.saved == entry.tree]
    saved.sort(key=lambda entry: entry.order)
    removed: list[Entry] = []
    tries, questions = _AT_A_TIME, _QUESTIONS
    # Those that could not be removed hold up no others.
    for entry in sorted(saved[: max(len(saved) - keep, 0)], key=lambda entry: entry.stuck):
        if not tries:
            break
        if not saving.is_known_to_be_committed(entry.path):
            if not questions or not saving.is_followed(entry.path):
                continue
            questions -= 1
            if not saving.is_committed(entry.path):
                continue
        before = entry.stuck
        if _try_to_take_away(root, entry, "is in the store", report):
            removed.append(entry)
        if entry.stuck > before or entry in removed:
            tries -= 1
    return removed


def _try_to_take_away(root: str, entry: Entry, why: str, report: Callable[[str], None]) -> bool:
    try:
        if not _take_away(root, entry, report):
            return False
        report(f"{entry.path} is removed from the disk: it {why}")
        return True
    except OSError as error:
        if not entry.stuck:
            report(f"{entry.path} {why}, but cannot be removed from the disk: {os_reason(error)}")
        entry.stuck += 1
        return False


def _take_away(root: str, entry: Entry, report: Callable[[str], None]) -> bool:
    """Remove an entry. False: it is not just as it was saved any more, and stays.

    Raises
    ------
    OSError
        It cannot be removed.
    """
    base, away = os.path.join(root, entry.base), os.path.join(root, REMOVED_PREFIX + secrets.token_hex(8))
    with contextlib.suppress(FileNotFoundError):
        # What was saved out of it by itself may still wait for the store in there.
        if entry.read(root) != entry.saved or (not entry.members and annex_in(base)):
            return False
        # Renamed first: killed in the middle of it, half a checkpoint would be left under its name.
        if not entry.members:
            os.rename(base, away)
            if read_tree(away) != entry.saved:
                os.rename(away, base)
                return False
        else:
            os.mkdir(away)
            for name in entry.members:
                os.rename(os.path.join(base, name), os.path.join(away, name))
        _remove(away, report)
        return True
    return False


def _remove(path: str, report: Callable[[str], None]) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    except OSError as error:
        report(f"{path}, which nobody needs any more, cannot be removed: {os_reason(error)}")

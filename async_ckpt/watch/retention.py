"""Room on the disk: what is in the store, and no longer among the newest, is removed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable

from ..capture.base import annex_in
from ..errors import os_reason
from ..system.files import remove_tree
from .entry import Entry
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


def retain(root: str, keep: int, recogniser: Recogniser, saving: Saving, report: Callable[[str], None]) -> list[Entry]:
    """Remove what is committed and not among the ``keep`` newest that were saved. Returns what was removed."""
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
        try:
            if take_away(root, entry, report):
                report(f"{entry.path} is removed from the disk: it is in the store")
                removed.append(entry)
                tries -= 1
        except OSError as error:
            if not entry.stuck:
                report(f"{entry.path} is in the store, but cannot be removed from the disk: {os_reason(error)}")
            entry.stuck += 1
            tries -= 1
    return removed


def take_away(root: str, entry: Entry, report: Callable[[str], None]) -> bool:
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

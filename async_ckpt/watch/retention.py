"""Room on the disk: what is in the store, and no longer among the newest, is removed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable

from ..snapshot.base import annex_in, remove_tree
from .recogniser import Entry, Recogniser
from .saving import Saving
from .tree import REMOVED_PREFIX, read_tree

#: So many are removed between two looks: each is asked for, and a large one takes time.
_AT_A_TIME = 8


def remove_leftovers(root: str) -> None:
    """Finish what a watch that was killed had begun to remove."""
    for name in os.listdir(root):
        if name.startswith(REMOVED_PREFIX):
            _remove(os.path.join(root, name))


def retain(root: str, keep: int, recogniser: Recogniser, saving: Saving, report: Callable[[str], None]) -> list[Entry]:
    """Remove what is committed and not among the ``keep`` newest that were saved. Returns what was removed.

    Raises
    ------
    OSError
        Something cannot be removed; it is where it was.
    """
    saved = [entry for entry in recogniser.entries.values() if entry.saved is not None and entry.saved == entry.tree]
    saved.sort(key=lambda entry: entry.order)
    too_many = [entry for entry in saved[: max(len(saved) - keep, 0)] if saving.is_followed(entry.path)]
    removed = []
    for entry in too_many[:_AT_A_TIME]:
        if saving.is_committed(entry.path) and _take_away(root, entry):
            report(f"{entry.path} is removed from the disk: it is in the store")
            removed.append(entry)
    return removed


def _take_away(root: str, entry: Entry) -> bool:
    """Whether it could be removed just as it was saved."""
    path, away = os.path.join(root, entry.path), os.path.join(root, REMOVED_PREFIX + secrets.token_hex(8))
    with contextlib.suppress(FileNotFoundError):
        # What was saved out of it by itself may still wait for the store in there.
        if read_tree(path) != entry.saved or annex_in(path):
            return False
        # Renamed first: killed in the middle of it, half a checkpoint would be left under its name.
        os.rename(path, away)
        if read_tree(away) != entry.saved:
            os.rename(away, path)
            return False
        _remove(away)
        return True
    return False


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

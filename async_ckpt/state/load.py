"""Finding a state among the files of a checkpoint that was loaded, and reading it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..ranks.who import Ranks
from .read import is_state, read_state

#: In a collective checkpoint each rank's state lies in a folder of its own.
_RANK = "rank-"


def rank_folder(rank: int) -> str:
    return f"{_RANK}{rank:05d}"


def load_state(directory: str, ranks: Callable[[], Ranks], **options: Any) -> Any:
    """Read the state of a loaded checkpoint; of a collective one, that of a rank.

    Parameters
    ----------
    directory : str
        What was loaded.
    ranks : callable
        Tells which rank this is, and of how many; asked where the checkpoint has states of ranks.
    options
        Those of ``read_state``.

    Raises
    ------
    UsageError, IntegrityError
        There is no state in it, or none of this rank, or of another number of ranks; or as ``read_state``.
    """
    if not os.path.isdir(directory):  # A checkpoint of one file.
        directory = os.path.dirname(directory)
    if is_state(directory):
        return read_state(directory, **options)
    names = sorted(name for name in os.listdir(directory) if is_state(os.path.join(directory, name)))
    if not names:
        raise UsageError(
            f"What was loaded is no state: it has {', '.join(sorted(os.listdir(directory))[:5]) or 'no files'}",
            where=directory, hint="Load what save() saved with load(), and what save_state() saved with load_state()",
        )  # fmt: skip
    return read_state(os.path.join(directory, _own(names, ranks)), **options)


def _own(names: list[str], ranks: Callable[[], Ranks]) -> str:
    try:
        mine = ranks()
    except UsageError:
        if len(names) == 1:  # Whoever reads it, such as a notebook, is no rank, and there is no other state.
            return names[0]
        raise
    name = rank_folder(mine.rank)
    # One alone may be all that was loaded, with shard="own".
    if name not in names or len(names) not in (1, mine.world):
        raise UsageError(
            f"The checkpoint has {len(names)} states, {names[0]} to {names[-1]}, and none of them is that of this "
            f"rank: it is rank {mine.rank} of {mine.world}",
            hint=f"Load it with load(), and read one with async_ckpt.state.read.read_state(directory + '/{names[0]}')",
        )
    return name

"""Who saves together: ranks, as those who start processes tell them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from .errors import UsageError
from .layout import TaskInfo

#: Pairs of variables with a process's rank and the number of ranks: torchrun and most others; Open MPI.
_VARIABLES = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))

#: How often torchrun has started all its ranks again.
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"

_MOST = 1 << 20


class Ranks(NamedTuple):
    """This rank, from 0, of so many; ``generation``: how often all of them were started again."""

    rank: int
    world: int
    generation: int = 0


def find(
    task: TaskInfo,
    rank: int | None = None,
    world: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Ranks:
    """Which rank this process is: as it says itself, as its environment says, or as the node of a gang.

    Raises
    ------
    UsageError
        Nobody says; or what is said makes no sense.
    """
    generation = _number(environment, _RESTARTS) if environment.get(_RESTARTS) else 0
    if (rank is None) != (world is None):
        raise UsageError("rank and world_size belong together", hint="Give both, or none of them")
    if rank is not None and world is not None:
        return _check(Ranks(rank, world, generation), "rank and world_size")
    for rank_name, world_name in _VARIABLES:
        if environment.get(rank_name) and environment.get(world_name):
            found = Ranks(_number(environment, rank_name), _number(environment, world_name), generation)
            return _check(found, f"{rank_name} and {world_name}")
    if task.nodes > 1:
        return Ranks(task.node, task.nodes, generation)
    raise UsageError(
        "A collective save needs to know which rank this is, and of how many",
        hint="Set RANK and WORLD_SIZE as torchrun does, or pass rank=… and world_size=…",
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name}={environment[name]!r} is not a number", hint=f"Unset {name} or correct it") from None


def _check(found: Ranks, names: str) -> Ranks:
    numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in found)
    if not numbers or not 0 <= found.rank < found.world <= _MOST or found.generation < 0:
        raise UsageError(
            f"{names} are {found.rank!r} and {found.world!r}, which is no rank of so many",
            hint="Ranks count from 0 to world_size - 1",
        )
    return found

"""Which rank a process is, of how many: as the launcher (torchrun, Open MPI) or the gang says."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UsageError
from ..layout import TaskInfo
from ..system.processes import began_at, parent_of

#: Pairs of variables with a process's rank and the number of ranks: torchrun and most others; Open MPI.
_VARIABLES = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))

#: How many ranks are on this machine: torchrun; Open MPI.
_LOCAL = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")

#: How many nodes Metaflow's gang has; it may be one.
_GANG = "MF_PARALLEL_NUM_NODES"

#: How often torchrun has started its ranks again, and may; on how many nodes it runs.
_RESTARTS, _MAX_RESTARTS, _NODES = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "GROUP_WORLD_SIZE"

_MOST = 1 << 20

#: So many processes (shells, wrappers) are looked at between a rank and the launcher that started it.
_MOST_WRAPPERS = 50


class Ranks(NamedTuple):
    """The number of this rank, from 0; how many ranks there are; and ``launch``, a text that only the ranks on this
    machine have in common that were started together.
    """

    rank: int
    world: int
    launch: str = ""


def find(
    task: TaskInfo,
    rank: int | None = None,
    world: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Ranks:
    """Which rank this process is: as the caller says (``rank`` and ``world``), as its environment says, or the number
    of its node in a gang.

    Raises
    ------
    UsageError
        None of them says; or what they say makes no sense, or cannot work.
    """
    if (rank is None) != (world is None):
        raise UsageError("rank and world_size belong together", hint="Give both, or none of them")
    _check_torchrun(task, environment)
    names = next((pair for pair in _VARIABLES if all(environment.get(name) for name in pair)), None)
    launch = _launcher(os.getpid(), names[0]) if names else ""
    launch += f".{environment[_RESTARTS]}" if environment.get(_RESTARTS) else ""
    if rank is not None and world is not None:
        return _check(Ranks(rank, world, launch), "rank and world_size")
    if names is not None:
        found = Ranks(_number(environment, names[0]), _number(environment, names[1]), launch)
        return _check(found, " and ".join(names))
    if task.nodes > 1 or environment.get(_GANG) == "1":
        return Ranks(task.node, task.nodes, launch)
    raise UsageError(
        "A collective save needs to know which rank this is, and of how many",
        hint="Set RANK and WORLD_SIZE as torchrun does, or pass rank=… and world_size=…",
    )


def count(task: TaskInfo, environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks there are, as the launcher or the gang says; 1 where nobody says so."""
    names = next((pair for pair in _VARIABLES if all(environment.get(name) for name in pair)), None)
    return _number(environment, names[1]) if names else task.nodes


def are_on_this_machine(task: TaskInfo, ranks: Ranks, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether all ranks run on this machine, as far as the launcher and the gang say."""
    local = next((number for name in _LOCAL if (number := _number(environment, name))), ranks.world)
    return task.nodes == 1 and local == ranks.world


def restart_count(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started this rank again.

    Raises
    ------
    UsageError
        Its variable is no number.
    """
    return _number(environment, _RESTARTS)


def _check_torchrun(task: TaskInfo, environment: Mapping[str, str]) -> None:
    """Refuse to run where parts of different saves would be put together: each node counts its restarts by itself."""
    nodes, restarts = _number(environment, _NODES), _number(environment, _MAX_RESTARTS)
    if nodes > 1 and restarts:
        raise UsageError(
            f"torchrun on {nodes} nodes may start its ranks again ({restarts} times), and each node counts that by "
            "itself: what ranks save together cannot be told apart then",
            hint="Use torchrun --max-restarts=0, and let @retry start the step again",
        )
    if nodes == 1 and task.nodes > 1:
        raise UsageError(
            f"torchrun runs on each of the {task.nodes} nodes of the gang for itself: each has a rank 0",
            hint="Start one torchrun over all nodes (--nnodes, --rdzv-endpoint with current.parallel.main_ip)",
        )


@functools.lru_cache(maxsize=16)
def _launcher(pid: int, name: str) -> str:
    """Which process has started the ranks of process ``pid``, a rank: its nearest ancestor without the variable
    ``name``. Wrappers in between, a shell of each rank, have it.
    """
    above = parent_of(pid)
    for _ in range(_MOST_WRAPPERS - 1):
        if not above or not _has_variable(above, name):
            break
        above = parent_of(above)
    return f"{above}.{began_at(above) if above else None}"


def _has_variable(pid: int, name: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(item.startswith(f"{name}=".encode()) for item in file.read().split(b"\0"))
    except OSError:
        return False  # Another user's, or gone.


def _number(environment: Mapping[str, str], name: str) -> int:
    """What a variable says; 0 where it is not set."""
    try:
        return int(environment.get(name) or 0)
    except ValueError:
        raise UsageError(f"{name}={environment[name]!r} is not a number", hint=f"Unset {name} or correct it") from None


def _check(found: Ranks, names: str) -> Ranks:
    numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in found[:2])
    if not numbers or not 0 <= found.rank < found.world <= _MOST:
        raise UsageError(
            f"{names} are {found.rank!r} and {found.world!r}, which is no rank of so many",
            hint="Ranks count from 0 to world_size - 1",
        )
    return found

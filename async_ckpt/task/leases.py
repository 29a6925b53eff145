"""The leases of what a process of the task captures: how many it may take, and how they are handed to the agent."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Mapping

from ..config import Config
from ..ipc.client import AgentClient, LeasedFile
from ..spool.records import Admitted

#: A process that may have this many descriptors surely has some left. They are not counted then: that takes long.
_MANY_DESCRIPTORS = 1 << 14


def lease_budget(client: AgentClient, config: Config) -> int:
    """How many more leases may be taken. They are descriptors of the trainer: at most a quarter of those it may have,
    and half of what is left.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(config.max_leases - client.leases_held, 0)
    budget = min(config.max_leases, soft // 4) - client.leases_held
    if soft < _MANY_DESCRIPTORS:
        with contextlib.suppress(FileNotFoundError):  # Without /proc nobody tells.
            budget = min(budget, (soft - _open_descriptors(soft)) // 2)
    return max(budget, 0)


def _open_descriptors(most: int) -> int:
    """How many this process has of those it may have."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return most


def hand_over(client: AgentClient, item: Admitted, leases: Mapping[str, int]) -> None:
    """Ring the agent's doorbell for a checkpoint, and have the leases (path → descriptor) of its files held."""
    entries = item.entries if leases else {}
    client.admit(
        item.id, {p: LeasedFile(fd, item.file(p), entries[p].size, entries[p].mtime_ns) for p, fd in leases.items()}
    )

"""How much memory this process may still take: of the machine, and of its control group (a container, a batch job)."""

from __future__ import annotations

import contextlib
import os

_MEMINFO = "/proc/meminfo"
_OWN_GROUP = "/proc/self/cgroup"
_GROUPS = "/sys/fs/cgroup"


def available_bytes(group_root: str = _GROUPS) -> int | None:
    """Bytes that can be taken before the kernel has to swap or to kill; None where nobody tells.

    Parameters
    ----------
    group_root : str
        Where the control groups are mounted.
    """
    known = [of_machine()]
    with contextlib.suppress(OSError):
        with open(_OWN_GROUP, encoding="utf-8") as file:
            lines = file.read().splitlines()
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                known += _left_in_groups(group_root, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                known += _left_in_groups(
                    os.path.join(group_root, "memory"), path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                    "total_inactive_file",
                )  # fmt: skip
    return min((count for count in known if count is not None), default=None)


def of_machine() -> int | None:
    """Bytes that the kernel says are available on the whole machine."""
    with contextlib.suppress(OSError, ValueError, StopIteration), open(_MEMINFO, encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    return None


def _left_in_groups(root: str, path: str, limit: str, usage: str, reclaimable: str) -> list[int | None]:
    """What is left in a group and in each that it is in. In a container the path may be one of the host: then its
    folders are not there, and what stands at the root is the container's.
    """
    found, folder = [], os.path.normpath(f"{root}/{path}")
    while folder.startswith(root):
        found.append(_left_in(folder, limit, usage, reclaimable))
        if folder == root:
            break
        folder = os.path.dirname(folder)
    return found


def _left_in(folder: str, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most = int(_read(folder, limit))  # Of a group without a limit that is "max".
        used = int(_read(folder, usage))
        lines = (line.split() for line in _read(folder, "memory.stat").splitlines())
        # Pages of files that nobody has touched for a while are dropped before anybody is killed.
        unused = next((int(words[1]) for words in lines if words[0] == reclaimable), 0)
    except (OSError, ValueError):
        return None
    return max(most - used + unused, 0)


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read()

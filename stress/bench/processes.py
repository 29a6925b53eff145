"""What processes use, as the kernel counts it. Pure standard library."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Living processes started by ``pid``, and by those."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    found, look = [], [pid]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def cpu_seconds(pid: int, *, children: bool = True) -> float:
    """User and system time of a process and, unless told otherwise, of those it has waited for; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return sum(map(int, _stat(pid)[11 : 15 if children else 13])) * _TICK_S
    return 0.0


def peak_bytes(pid: int) -> int:
    """The most memory that was resident in a process so far; 0 if it is gone."""
    return _status(pid, "VmHWM")


def shared_out_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes that share pages, each page counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            total += next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), 0)
    return total


class ChildrenPeak:
    """Watches the memory of all descendants of a process, until its block ends: ``bytes``."""

    def __init__(self, pid: int, interval_s: float = 0.25) -> None:
        self.bytes = 0
        self._pid, self._interval_s = pid, interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ChildrenPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self.bytes = max(self.bytes, shared_out_bytes(descendants(self._pid)))


def _stat(pid: int) -> list[str]:
    """The fields behind the command's name, from the state on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _status(pid: int, field: str) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:")), 0)
    return 0

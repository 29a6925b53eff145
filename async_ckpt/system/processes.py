"""Processes, as /proc shows them: whether one lives, and gets on; ending the one that is meant; and what those that
are started for a spool do first of all.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..config import HUNG_ON_DISK, HUNG_STEP_S
from .files import wait_for


def process_exists(pid: int) -> bool:
    """Whether a process of this number runs, whoever owns it; one that is dead and not yet waited for does not.

    None has a number below 1: 0 is how the kernel names one in another PID namespace.
    """
    if pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return state_of(pid) not in ("Z", "X")


def parent_of(pid: int) -> int | None:
    """Who started a process, or has taken it over since; None: there is no such process."""
    found = _stat(pid)
    return int(found[1]) if found else None


def began_at(pid: int) -> int | None:
    """When a process was started, in ticks since this machine was: no two of one number have the same."""
    found = _stat(pid)
    return int(found[19]) if found else None


def cpu_seconds(pid: int, without: Collection[int] = ()) -> float | None:
    """How much CPU time a process and its descendants have used, those included that were waited for, but for some and
    theirs. None: not all of that can be seen.
    """
    fields = _stat(pid)
    if not fields:
        return None
    total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children = [int(child) for child in file.read().split()]
            total += sum(cpu_seconds(child, without) or 0.0 for child in children if child not in without)
    except OSError:  # A kernel without these files, or the thread has ended in this moment.
        return None
    return total


def state_of(pid: int) -> str:
    """What the main thread of a process does, as a letter: ``R`` runs or waits for a CPU, ``S`` sleeps, ``D`` waits for
    a disk and cannot be ended, ``T`` is stopped, ``Z`` is dead; ``?``: there is no such process.
    """
    return (_stat(pid) or ["?"])[0]


def turns_of(pid: int) -> int | None:
    """How often the main thread of a process has got the CPU, or given it away: a number that only grows, and does not
    as long as the thread waits for one thing. None: there is no such process.
    """
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as file:
        return sum(int(line.split()[1]) for line in file if b"voluntary_ctxt_switches" in line)
    return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, from the state on; empty: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass
class Stillness:
    """One process, as it is seen about once a second.

    ``looked``: when it was seen last (monotonic seconds); ``state``: what its main thread did then (``state_of``);
    ``turns``: how often that had run; ``still_s``: for how many seconds it has not run; ``silent_s``: for how many
    seconds it was looked at.
    """

    pid: int
    looked: float = -1.0
    state: str = "?"
    turns: int | None = None
    still_s: float = 0.0
    silent_s: float = 0.0

    def look(self, now: float) -> None:
        """See how it gets on."""
        turns = turns_of(self.pid)
        step = min(now - self.looked, HUNG_STEP_S) if self.looked >= 0 else 0.0
        self.state = state_of(self.pid)
        self.looked, self.silent_s = now, self.silent_s + step
        # One that waits for a CPU gets none; it is not to blame.
        is_still = turns is not None and turns == self.turns and self.state != "R"
        self.still_s, self.turns = self.still_s + step if is_still else 0.0, turns

    def hangs(self, limit_s: float) -> bool:
        """Whether it has not run for so long; one that waits for a disk is given more time."""
        return self.still_s >= limit_s * (HUNG_ON_DISK if self.state == "D" else 1)


def command_of(pid: int) -> list[str]:
    """The command line of a process; empty where it is gone, dead, or hidden."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def opened_by(pid: int) -> set[str]:
    """Paths of what a process has open; nothing is asked of their file systems, which may be gone."""
    paths = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                paths.add(os.readlink(f"/proc/{pid}/fd/{name}").removesuffix(" (deleted)"))
    return paths


def find(role: str, directory: str) -> Iterator[int]:
    """Processes of ours (``agent``, ``uploader``, ``saver``) that work for the spool in ``directory``."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal() and is_ours(int(name), role, directory):
                yield int(name)


def is_ours(pid: int, role: str, directory: str) -> bool:
    """Whether a process is one that we have started for this spool: its command line ends as nobody else's does."""
    # In a PID namespace of its own, with another one's /proc (``unshare --pid``), a number means two processes.
    if os.readlink("/proc/self") != str(os.getpid()):
        return False
    *words, spool = command_of(pid) or [""]
    # Its role stands before the numbers of descriptors, and the spool.
    return spool == directory and next((word for word in reversed(words) if not word.isdecimal()), "") == role


def end(pid: int, role: str, directory: str, timeout_s: float) -> bool:
    """Kill a process of ours, and nobody else who may have its number by now.

    Returns
    -------
    bool
        Whether it is gone. If not after ``timeout_s`` seconds, it hangs in the kernel; it will never again do anything
        of its own.
    """
    try:
        # From here on the number cannot become another one's for us.
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # A kernel before 5.3, or one that is not really one.
        fd = -1
    try:
        if not is_ours(pid, role, directory):
            return True
        with contextlib.suppress(ProcessLookupError):
            if fd >= 0:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        # A dead one that nobody has waited for has no command line any more.
        wait_for(lambda: not is_ours(pid, role, directory), timeout_s, "its end")
    except TimeoutError:
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: every lease is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ignore_terminal_signals() -> None:
    """Ctrl-C and a closed terminal concern the task. A SIGTERM is answered by going on until we are killed: every
    second of it may bring one more checkpoint into the store.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

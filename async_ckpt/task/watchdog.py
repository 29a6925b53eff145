"""Finds and ends agents that live and do nothing: stopped, deadlocked, or caught in the kernel by a disk that is gone.

The main thread of a healthy agent runs five times a second. An agent hangs if it has left a question unanswered for
``hung_s`` seconds and its main thread has not run once in that time, although this process has: a machine that is busy,
or was suspended, is slow for both. Such an agent is ended, and whoever needs one starts another, as everything is on
the disk.
"""

from __future__ import annotations

import logging
import os
import threading

from ..config import HUNG_BUSY, HUNG_HURRY_S, KILLED_S, Config
from ..system.processes import Stillness, end, find, is_ours, opened_by, process_exists

log = logging.getLogger(__name__)


class Watchdog:
    """What is known of the agents of one spool that owe an answer.

    Parameters
    ----------
    directory : str
        The spool.
    """

    def __init__(self, directory: str, config: Config) -> None:
        self._directory, self._config = directory, config
        self._lock = threading.Lock()
        self._looked = 0.0
        self._watched: dict[int, Stillness] = {}
        #: Were killed, and cannot die: they hang in the kernel, and will never come back from there.
        self._undead: set[int] = set()
        #: The machine is about to go.
        self.hurry = False

    def is_undead(self, pid: int) -> bool:
        """Whether an agent was killed and cannot die, because it hangs in the kernel."""
        return pid in self._undead

    def has_undead(self) -> bool:
        """Whether there is such an agent."""
        self._undead = {pid for pid in self._undead if process_exists(pid)}
        return bool(self._undead)

    def is_lost(self, path: str) -> bool:
        """Whether such an agent holds a file open: a lock on it is never let go."""
        return any(os.path.realpath(path) in opened_by(pid) for pid in self._undead)

    def forgive(self, pid: int) -> None:
        """It has answered."""
        with self._lock:
            self._watched.pop(pid, None)

    def look_for(self, now: float) -> None:
        """The same as ``look`` for all agents of the spool, where nobody knows which one it is; not too often."""
        if now - self._looked >= 1.0:
            self._looked = now
            for pid in find("agent", self._directory):
                self.look(pid, now)

    def look(self, pid: int, now: float) -> bool:
        """See an agent that owes an answer, about once a second (``now``: monotonic seconds), and end it if it hangs.

        Returns
        -------
        bool
            Whether it is of no use any more.
        """
        if pid in self._undead:
            return True
        with self._lock:
            seen = self._watched.setdefault(pid, Stillness(pid))
            seen.look(now)
            hangs = seen.still_s >= HUNG_HURRY_S if self.hurry else seen.hangs(self._config.hung_s)
            if not hangs and seen.silent_s < self._config.hung_s * HUNG_BUSY:
                return False
            del self._watched[pid]
        return self._end(pid, seen)

    def _end(self, pid: int, seen: Stillness) -> bool:
        if not is_ours(pid, "agent", self._directory):  # It is in another PID namespace, or somebody else by now.
            return False
        is_gone = end(pid, "agent", self._directory, KILLED_S)
        what = "does nothing" if seen.still_s else "is busy with itself"
        log.warning(
            f"The agent (pid {pid}) has not answered for {seen.silent_s:.0f} s and {what} (state {seen.state}): it was "
            + ("ended, and another one takes over" if is_gone else
               "killed, but hangs in the kernel, perhaps at a disk that is gone; another one takes over without it")
        )  # fmt: skip
        if not is_gone:
            self._undead.add(pid)
        return True

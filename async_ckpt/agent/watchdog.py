"""Finds and ends agents that live and do nothing: stopped, deadlocked, or caught in the kernel by a disk that is gone.

The main thread of a healthy agent runs five times a second. An agent hangs if it has left a question unanswered for
``hung_s`` seconds and its main thread has not run once in that time, although this process has: a machine that is busy,
or was suspended, is slow for both. Such an agent is ended, and whoever needs one starts another, as everything is on
the disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..config import HUNG_BUSY, HUNG_HURRY_S, HUNG_ON_DISK, KILLED_S, WATCH_STEP_S, Config
from ..system.processes import end, find, is_ours, opened_by, process_exists, state_of, turns_of


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
        step = min(now - self.looked, WATCH_STEP_S) if self.looked >= 0 else 0.0
        self.state = state_of(self.pid)
        self.looked, self.silent_s = now, self.silent_s + step
        # One that waits for a CPU gets none; it is not to blame.
        is_still = turns is not None and turns == self.turns and self.state != "R"
        self.still_s, self.turns = self.still_s + step if is_still else 0.0, turns


class Watchdog:
    """What is known of the agents of one spool that owe an answer.

    Parameters
    ----------
    directory : str
        The spool.
    say : callable
        Gets a line whenever one is ended.
    """

    def __init__(self, directory: str, config: Config, say: Callable[[str], None]) -> None:
        self._directory, self._config, self._say = directory, config, say
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
            limit = HUNG_HURRY_S if self.hurry else self._config.hung_s
            still_limit = limit * HUNG_ON_DISK if seen.state == "D" and not self.hurry else limit
            if seen.still_s < still_limit and seen.silent_s < self._config.hung_s * HUNG_BUSY:
                return False
            del self._watched[pid]
        return self._end(pid, seen)

    def _end(self, pid: int, seen: Stillness) -> bool:
        if not is_ours(pid, "agent", self._directory):  # It is in another PID namespace, or somebody else by now.
            return False
        is_gone = end(pid, "agent", self._directory, KILLED_S)
        what = "does nothing" if seen.still_s else "is busy with itself"
        self._say(
            f"The agent (pid {pid}) has not answered for {seen.silent_s:.0f} s and {what} (state {seen.state}): it was "
            + ("ended, and another one takes over" if is_gone else
               "killed, but hangs in the kernel, perhaps at a disk that is gone; another one takes over without it")
        )  # fmt: skip
        if not is_gone:
            self._undead.add(pid)
        return True

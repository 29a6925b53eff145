"""Which files are rewritten in place: who does so once will do so at every save, and in the next run."""

from __future__ import annotations

import os
import re
import threading

#: So many kinds of paths are remembered; more than that is a pattern that remembering does not help.
_MAX_KINDS = 10_000
#: Of the file in which they are remembered no more is read, in bytes.
_MAX_BYTES = 4 << 20


class Habits:
    """Paths that were rewritten in place, by their kind: what they are without their numbers.

    Parameters
    ----------
    path : str
        A file that remembers them across agents, tasks and runs on this disk: one kind a line.
    work : str
        The task's directory of work directories, whose names are new in every attempt.
    label : str
        What stands for it: the same in every run of the step.
    """

    def __init__(self, path: str, work: str, label: str) -> None:
        self._path, self._work, self._label = path, os.path.join(work, ""), label
        self._lock = threading.Lock()
        self._kinds = self._read()

    def _read(self) -> set[str]:
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                return set(file.read(_MAX_BYTES).splitlines()[:_MAX_KINDS])
        except OSError:
            return set()  # Not there yet, as a rule. It is a hint: whatever is wrong with it, all is learned anew.

    def _kind(self, path: str) -> str:
        if path.startswith(self._work):
            path = os.path.join(self._label, path[len(self._work) :].partition("/")[2])
        return re.sub(r"\d+", "#", path).replace("\n", " ")

    def is_rewritten(self, path: str) -> bool:
        """Whether a file of this kind was rewritten in place before."""
        return bool(self._kinds) and self._kind(path) in self._kinds

    def learn(self, path: str) -> None:
        """Remember that a file was rewritten in place."""
        kind = self._kind(path)
        with self._lock:
            if kind in self._kinds or len(self._kinds) >= _MAX_KINDS:
                return
            self._kinds.add(kind)
            try:
                with open(self._path, "a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{kind}\n")
            except OSError:
                return  # A full disk: this agent knows it all the same, and the next one learns it anew.

"""Which kinds of files are rewritten in place, and which are new files at every save.

A program that rewrites a file in place once will do so at every save, and in the next run. Others write each checkpoint
to a new name, or to a new file that takes the old one's name.
"""

from __future__ import annotations

import os
import re
import threading

#: So many kinds of paths are remembered. Where there are more, remembering does not help.
_MAX_KINDS = 10_000
#: No more is read of the file in which they are remembered, in bytes.
_MAX_BYTES = 4 << 20

#: Of so many different files of a kind none was rewritten: so each is a new one. Two may be rewritten in turn.
_NEW_FILES = 3

_REWRITTEN, _NEW = "rewritten", "new"


def original_of(saved_path: str, path: str) -> str:
    """Where the file stands that has this path in the snapshot of ``saved_path``."""
    real = os.path.realpath(saved_path)
    return os.path.join(real, path) if os.path.isdir(real) else real


class Habits:
    """Paths that were rewritten in place, or are new files each time, by their kind: what they are without numbers.

    Parameters
    ----------
    path : str
        A file that remembers them across agents, tasks and runs on this disk: one a line, the last one of a kind holds.
    work : str
        The task's directory of work directories, whose names are new in every attempt.
    label : str
        What stands for it: the same in every run of the step.
    """

    def __init__(self, path: str, work: str, label: str) -> None:
        self._path, self._work, self._label = path, os.path.join(work, ""), label
        self._lock = threading.Lock()
        self._read_size = 0
        self._known: dict[str, str] = {}
        self._files: dict[str, set[tuple[int, int]]] = {}
        self._read()

    def _read(self) -> None:
        try:
            size = os.stat(self._path).st_size
            if size == self._read_size:
                return
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read(_MAX_BYTES).splitlines()[: 2 * _MAX_KINDS]
        except OSError:
            return  # Not there yet, as a rule. It is a hint: whatever is wrong with it, all is learned anew.
        self._known |= {kind: habit for habit, _, kind in (line.partition(" ") for line in lines)}
        self._read_size = size

    def _kind(self, path: str) -> str:
        if path.startswith(self._work):
            path = os.path.join(self._label, path[len(self._work) :].partition("/")[2])
        return re.sub(r"\d+", "#", path).replace("\n", " ")

    def is_rewritten(self, path: str) -> bool:
        """Whether a file of this kind was rewritten in place before."""
        return self._has(path, _REWRITTEN)

    def is_new_each_time(self, path: str) -> bool:
        """Whether files of this kind are never rewritten, as far as was seen."""
        return self._has(path, _NEW)

    def _has(self, path: str, habit: str) -> bool:
        with self._lock:
            self._read()
            return bool(self._known) and self._known.get(self._kind(path)) == habit

    def learn(self, path: str) -> None:
        """Remember that a file was rewritten in place."""
        with self._lock:
            self._remember(self._kind(path), _REWRITTEN)

    def learn_new(self, path: str) -> None:
        """Remember that files of this kind are never rewritten: who writes them has said so."""
        with self._lock:
            self._remember(self._kind(path), _NEW)

    def saw(self, path: str, inode: tuple[int, int]) -> None:
        """A file was saved; ``inode``: device and number."""
        kind = self._kind(path)
        with self._lock:
            if kind in self._known or len(self._files) >= _MAX_KINDS:
                return
            files = self._files.setdefault(kind, set())
            files.add(inode)
            if len(files) >= _NEW_FILES:
                del self._files[kind]
                self._remember(kind, _NEW)

    def _remember(self, kind: str, habit: str) -> None:
        if self._known.get(kind) == habit or len(self._known) >= _MAX_KINDS:
            return
        self._known[kind] = habit
        try:
            with open(self._path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{habit} {kind}\n")
        except OSError:
            return  # A full disk: this agent knows it all the same, and the next one learns it anew.

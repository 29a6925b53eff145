"""Which version a save gets: one counter for all processes of a task on this machine, and one for each of its ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .. import layout
from ..config import SPOOL_LOCK_TIMEOUT_S
from ..errors import SpoolError
from ..system.files import locked
from . import journal
from .directories import spool_errors
from .records import Records
from .spool_directory import SpoolDirectory


class Versions:
    """The counters of one spool. They never go back, also where something has removed their files."""

    def __init__(self, spool: SpoolDirectory, records: Records) -> None:
        self._records = records
        self._spool, self._task = spool, spool.task
        #: What was counted last by this object, by counter: a file that is made again must not fall behind it.
        self._counted: dict[str, int] = {}

    def next(self) -> int:
        """The next version number of this attempt."""
        with self._locked() as fd:
            counter = self._count(fd)
            self._set(fd, counter + 1)
        return self._task.version(counter)

    def upcoming(self) -> int:
        """What ``next`` would give out now; it does not take it."""
        with self._locked() as fd:
            return self._task.version(self._count(fd))

    def next_collective(self, rank: int, launch: str = "", turns: int = 1) -> int:
        """The version of a rank's next collective save; its n-th is the n-th of every rank.

        Parameters
        ----------
        rank : int
            Of all that save together, from 0.
        launch : str
            What all ranks have in common that were started together. With every new one they count from 1 again, as a
            rank that died may be behind the others.
        turns : int
            How many it takes: more than one after some that could not be counted.

        Raises
        ------
        SpoolError
            It cannot be counted; or this rank has been started again since.
        """
        count = self._spool.path(f"collective.{self._task.attempt}.{rank}")
        with self._locked() as fd, locked(count, timeout_s=SPOOL_LOCK_TIMEOUT_S) as count_fd:
            launches, counter = self._launches_before(launch), max(_read(count_fd), self._counted.get(count, 0))
            generation = self._start_number * layout.GENERATIONS + launches
            number = max(counter, generation * layout.GENERATION_STEP) + turns
            if number > (generation + 1) * layout.GENERATION_STEP or launches >= layout.GENERATIONS:
                raise SpoolError(
                    f"Rank {rank} was started again since, or has saved {layout.GENERATION_STEP} times with others: "
                    "this process can take part in no collective save any more",
                    where=count, hint="Let the step be retried",
                )  # fmt: skip
            os.pwrite(count_fd, b"%d" % number, 0)
            self._counted[count] = number
            # What is saved after it has a higher version.
            self._set(fd, max(self._count(fd), number * layout.COLLECTIVE_STEP + 1))
        return self._task.collective_version(number)

    def _launches_before(self, launch: str) -> int:
        """How many others there were before this launch in this attempt. The counter of versions is locked."""
        with open(self._spool.path(f"launches.{self._task.attempt}"), "a+b") as file:
            file.seek(0)
            line, known = f"{launch}\n".encode(), file.readlines()
            if line not in known:
                file.write(line)
                known.append(line)
        return known.index(line)

    def ranks(self, attempt: int) -> list[int]:
        """As which ranks processes on this machine have saved together with others in an attempt."""
        prefix = f"collective.{attempt}."
        ranks = (name[len(prefix) :] for name in os.listdir(self._spool.directory) if name.startswith(prefix))
        return sorted(int(rank) for rank in ranks if rank.isdecimal())

    def count_from(self, name: str, least: int) -> None:
        """See that a counter, by its file's name, is not below what was seen of it."""
        with locked(self._spool.path(name), timeout_s=SPOOL_LOCK_TIMEOUT_S) as fd:
            if _read(fd) < least:
                os.pwrite(fd, b"%d" % least, 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file of the counter of versions, locked."""
        with spool_errors("No version number can be taken", self._spool.directory):
            if not os.path.isdir(self._spool.directory):
                self._spool.mend()
            with locked(self._spool.path(f"versions.{self._task.attempt}"), timeout_s=SPOOL_LOCK_TIMEOUT_S) as fd:
                yield fd

    @property
    def _start_number(self) -> int:
        start = self._spool.start
        return start.number if start is not None else 0

    def _count(self, fd: int) -> int:
        """What the counter of versions says; where its file was removed and made again, what it said at least."""
        task = self._task
        counter = max(_read(fd), self._counted.get("versions", 0), self._start_number * layout.START_STEP)
        if not os.fstat(fd).st_size:
            used = map(journal.order, [*self._records.ids(), *journal.read(self._spool.path("journal"))])
            counter = max([counter, *(task.counter(version) for attempt, version in used if attempt == task.attempt)])
        return counter

    def _set(self, fd: int, counter: int) -> None:
        os.pwrite(fd, b"%d" % counter, 0)
        self._counted["versions"] = counter


def _read(fd: int) -> int:
    return int(os.pread(fd, 32, 0) or b"0")

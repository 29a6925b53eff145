"""The directory of a spool: what the parts of a ``Spool`` need of it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict

from .. import layout
from ..manifest import dump
from ..stores.base import StoreSpec
from ..system.files import write_new
from . import starts
from .directories import private_directory, private_subdirectory, spool_errors
from .saver_names import SaverNames, note_namespace
from .starts import Start

FORMAT = 1


class SpoolDirectory:
    """Where a spool is, whose it is, and how it is made again where something removes it."""

    def __init__(self, directory: str, task: layout.TaskInfo, store: StoreSpec) -> None:
        self.directory, self.task, self.store = directory, task, store
        #: Whether this process knows that the task runs, and may make the spool again where it is removed.
        self.may_make = False
        self._start: Start | None = None
        #: Whether a process of this machine has begun this attempt before.
        self._begun_before = False
        self.saver_names = SaverNames(directory)

    def path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def _identity_json(self) -> bytes:
        return dump({"format": FORMAT, "task": asdict(self.task), "store": self.store.to_json()})

    def make_folders(self) -> None:
        """Make the directories in it that are not there."""
        for name in ("data", "staging", "ready"):
            private_subdirectory(self.path(name))

    def mend(self) -> None:
        """Make the directories again that something has removed. In a process that knows that the task runs also the
        spool itself and ``spool.json``; what that said of a later attempt stays.

        Raises
        ------
        SpoolError
            They cannot be made.
        """
        with spool_errors("The spool cannot be mended", self.directory):
            if self.may_make and not os.path.isdir(self.directory):
                private_directory(os.path.dirname(self.directory))
                private_subdirectory(self.directory)
            self.make_folders()
            if self.may_make and not os.path.lexists(self.path("pidns")):
                note_namespace(self.directory)
            path = self.path("spool.json")
            if self.may_make and not os.path.exists(path):
                with contextlib.suppress(FileExistsError):
                    write_new(path, self._identity_json(), f"{path}.{os.getpid()}")

    def start_path(self, attempt: int) -> str:
        """The file that says which start of an attempt runs."""
        return self.path(f"start.{attempt}")

    def begin(self) -> None:
        """The task's own process starts: the agent is to ask the store which start of the attempt this is.

        Raises
        ------
        SpoolError
            The spool cannot be written.
        """
        self._start, self._begun_before = None, os.path.exists(self.start_path(self.task.attempt))
        starts.begin(self.start_path(self.task.attempt))

    @property
    def start(self) -> Start | None:
        """Which start of the attempt this is; None: that is not known yet.

        Raises
        ------
        SpoolError
            It cannot be read.
        """
        if self._start is None:
            self._start = starts.read(self.start_path(self.task.attempt))
        return self._start

    def go_alone(self) -> Start:
        """Begin without the store's word; ``SpoolError`` if the spool cannot be written."""
        self._start = starts.go_alone(self.start_path(self.task.attempt), self.task)
        return self._start

"""The well-behaved client: it saves and asks, all the time, while others attack its agent."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from async_ckpt.errors import CheckpointError
from async_ckpt.task.checkpointer import Checkpointer
from harness.files.writers import content
from harness.tasks.many_savers import BIG, SMALL

#: Seconds between two saves.
_STEP_S = 0.25


class Trainer(threading.Thread):
    """Saves and asks for the status until it is told to stop.

    Its files are written anew and renamed, never in place: an intruder may let go of leases, which are the user's own.
    """

    def __init__(self, checkpointer: Checkpointer, folder: Path) -> None:
        super().__init__()
        self._checkpointer, self._folder = checkpointer, folder
        self.over = threading.Event()
        self.saved: list[dict[str, object]] = []
        self.complaints: list[str] = []
        self.slowest_save_s = self.slowest_status_s = 0.0

    def run(self) -> None:
        self._folder.mkdir(exist_ok=True)
        while not self.over.wait(_STEP_S):
            try:
                self._step(len(self.saved))
            except CheckpointError as error:
                self.complaints.append(f"{type(error).__name__}: {error}")

    def _step(self, number: int) -> None:
        for name, size in (("weights", BIG), ("step", SMALL)):
            (self._folder / f".{name}").write_bytes(content(number, size))
            os.replace(self._folder / f".{name}", self._folder / name)
        begun = time.monotonic()
        self.saved.append(dict(self._checkpointer.save(self._folder, metadata={"number": number})))
        self.slowest_save_s = max(self.slowest_save_s, time.monotonic() - begun)
        begun = time.monotonic()
        if failed := self._checkpointer.status()["failed"]:
            self.complaints.append(
                f"The agent says of checkpoints nobody saved, or of good ones, that they failed: {failed[0]}"
            )
        self.slowest_status_s = max(self.slowest_status_s, time.monotonic() - begun)

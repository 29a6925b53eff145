"""The agent's part in claiming a start of an attempt (``ranks/starts.py``): it has the uploader ask the store as soon
as the task's process says hello, and writes down what it hears. Whoever needs the number waits in
``Tracker.wait_for_start``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable
from typing import Any

from ..config import GATHER_FIRST_S, GATHER_LAST_S
from ..errors import SpoolError
from ..ipc.protocol import Message
from ..spool import starts
from ..spool.spool import Spool
from ..system.backoff import Backoff
from ..system.clock import Clock
from .child import Child


class Starts:
    """Has the start of each attempt claimed, once.

    Parameters
    ----------
    say : callable
        Gets what people should know.
    """

    def __init__(self, spool: Spool, uploader: Child, say: Callable[[str], None], clock: Clock) -> None:
        self._spool, self._uploader, self._say, self._clock = spool, uploader, say, clock
        self._asked: tuple[int, int, int] | None = None
        #: Tokens by which our claims of an attempt are known again, in case something removes them from the spool.
        self._tokens: dict[int, str] = {}
        self._order: Message | None = None
        self._ordered = False
        #: The store was asked, and could not say: those who wait have waited for the store since then.
        self._has_failed = False
        self._retries = Backoff(0, GATHER_FIRST_S, GATHER_LAST_S)
        #: Why the store will not be asked; empty: it will.
        self._why = ""

    def begin(self, attempt: int, pid: int, gang_leader_pid: int) -> None:
        """A process of the task says hello; what the spool is sure of is not asked again.

        Parameters
        ----------
        gang_leader_pid : int
            See ``who_am_i``.
        """
        self._asked = attempt, pid, gang_leader_pid
        path = self._spool.start_path(attempt)
        try:
            known = starts.read(path)
            if known is not None and not known.alone:
                return
            token = self._tokens[attempt] = starts.token(path, self._tokens.get(attempt))
        except SpoolError as error:
            self._why = str(error)
            return
        self._order = {"op": "claim", "id": "", "attempt": attempt, "who": who_am_i(pid, gang_leader_pid, token)}
        if known is not None:
            self._order["start"] = known.number
        self._ordered, self._has_failed, self._why = False, False, ""
        self._retries.reset()

    def tick(self, now: float) -> None:
        """Have it done, if it is to be done (``now`` in monotonic seconds)."""
        if self._order is not None and not self._ordered and not self._retries.left_s(now) and self._uploader.ensure():
            self._ordered = True
            self._uploader.tell(self._order)

    def on_message(self, message: Message) -> None:
        """What the uploader says of it."""
        if self._order is None or message["attempt"] != self._order["attempt"]:
            return
        self._ordered = False
        if "start" not in message:
            self._has_failed = True
            if message["transient"]:
                self._retries.failed(self._clock.monotonic())
            else:
                self.give_up(message["why"])
            return
        try:
            start = starts.note(self._spool.start_path(message["attempt"]), message["start"], first=message["first"])
        except SpoolError as error:
            self.give_up(str(error))
            return
        if start.number != message["start"]:  # Somebody could not wait: others are to know of that number.
            self._order["start"] = start.number
            return
        why = message["why"]
        if why and start.alone:
            why += ". What it had saved was not looked for, as the store did not answer in time"
        if why:
            self._say(why)
        self._order = None

    def give_up(self, why: str) -> None:
        """The store will not be asked again, until somebody says hello."""
        if self._order is not None:
            self._order, self._why = None, why

    def uploader_died(self) -> None:
        """It is to be told again."""
        self._ordered = False

    def answer(self, attempt: int, *, late: bool) -> Message | None:
        """What somebody is told who waits for the number; None: nothing yet."""
        try:
            known = starts.read(self._spool.start_path(attempt))
        except SpoolError as error:
            return {"start": None, "why": str(error)}
        if known is not None:
            return {"start": known.number, "why": ""}
        if self._order is None and not self._why and self._asked is not None:
            self.begin(*self._asked)  # Something has removed what was known.
        asked = self._has_failed or (self._ordered and self._uploader.has_spoken)
        return {"start": None, "why": self._why, "asked": asked} if late or self._why else None


def who_am_i(pid: int, gang_leader_pid: int, token: str) -> dict[str, Any]:
    """What the claim of a process of this machine says.

    Parameters
    ----------
    pid : int
        The task's process.
    gang_leader_pid : int
        That of the gang's first node, where it runs on this machine; 0 or 1: it does not, or is gone, or there is none.
    """
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    host = socket.gethostname()
    return {
        "host": host,
        "boot": boot,
        "pid": pid,
        "gang_leader_pid": gang_leader_pid if gang_leader_pid > 1 else pid,
        "at": now,
        "user": os.getuid(),
        "token": token,
    }

"""Clients that wait for something, each with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..ipc.protocol import Message
from ..ipc.server import Connection


class _Entry(NamedTuple):
    connection: Connection
    message: Message
    until: float


class Waiting:
    """Who waits, and for what.

    Parameters
    ----------
    answer : callable
        Given a request, and whether its time is over: what is said now; None, unless it is: not yet.
    """

    def __init__(self, answer: Callable[[Message, bool], Message | None]) -> None:
        self._answer = answer
        self._entries: list[_Entry] = []

    def add(self, connection: Connection, message: Message, limit_s: float) -> None:
        """Answer a request as soon as it has come about, or its time (seconds) is over."""
        self._entries.append(_Entry(connection, message, time.monotonic() + limit_s))

    def forget(self, connection: Connection) -> None:
        """Nobody is there any more to be answered."""
        self._entries = [entry for entry in self._entries if entry.connection is not connection]

    def tick(self, now: float) -> None:
        """Answer whom there is something to tell."""
        still = []
        # Sending may end a connection, and then this list is made anew.
        entries, self._entries = self._entries, []
        for entry in entries:
            said = self._answer(entry.message, now >= entry.until)
            if said is None:
                still.append(entry)
            else:
                entry.connection.send({"seq": entry.message.get("seq"), **said})
        self._entries += still

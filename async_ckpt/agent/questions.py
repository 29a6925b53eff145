"""Clients that wait for something, each with a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..ipc.protocol import Message
from ..ipc.server import Connection
from ..system.clock import Clock

#: Most questions of one connection that wait at once: each is looked at some times a second.
MAX_QUESTIONS = 256


class _Question(NamedTuple):
    message: Message
    until: float


class Questions:
    """Who waits, and for what.

    Parameters
    ----------
    answer : callable
        Is given a request, whether this is the first look at it, and whether its time is over. Returns the answer, or
        None if there is none yet; once its time is over there must be one.
    """

    def __init__(self, answer: Callable[[Message, bool, bool], Message | None], clock: Clock) -> None:
        self._answer, self._clock = answer, clock
        self._entries: dict[Connection, list[_Question]] = {}

    def is_full(self, connection: Connection) -> bool:
        """Whether a connection may ask nothing more before it has an answer."""
        return len(self._entries.get(connection, ())) >= MAX_QUESTIONS

    def has(self, op: str) -> bool:
        """Whether somebody waits for the answer to such a request."""
        return any(entry.message["op"] == op for entries in self._entries.values() for entry in entries)

    def add(self, connection: Connection, message: Message, limit_s: float) -> None:
        """Answer a request as soon as it has come about, or its time (seconds) is over."""
        if not self._say(connection, message, first=True, late=limit_s <= 0):
            self._entries.setdefault(connection, []).append(_Question(message, self._clock.monotonic() + limit_s))

    def forget(self, connection: Connection) -> None:
        """Nobody is there any more to be answered."""
        self._entries.pop(connection, None)

    def tick(self, now: float) -> None:
        """Answer whom there is something to tell."""
        for connection, entries in list(self._entries.items()):
            still = [entry for entry in entries if not self._say(connection, entry.message, late=now >= entry.until)]
            # Sending may end a connection, and then it is forgotten.
            if connection in self._entries:
                self._entries[connection] = still
            if not still:
                self.forget(connection)

    def _say(self, connection: Connection, message: Message, *, first: bool = False, late: bool) -> bool:
        said = self._answer(message, first, late)
        if said is not None:
            connection.send({"seq": message.get("seq"), **said})
        return said is not None

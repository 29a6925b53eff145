"""Saves that clients ask for over the socket. One process does them one after the other: the saver
(``task/socket_saver.py``).

The control plane only hands them on, as a capture may have to copy for minutes. The saver is to the agent a subprocess
of the task like any other: it captures, takes a version, admits, and keeps the leases until the agent has them. It is
started by the first save that is asked for.

Agent → saver: ``{"op": "save", "n", ...}`` with the client's fields; ``{"op": "stop"}``. Saver → agent: ``{"n", "id",
"reference"}`` or ``{"n", "error", "kind"}``.
"""

from __future__ import annotations

import contextlib
import selectors
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..errors import ProtocolError
from ..ipc import protocol
from ..ipc.protocol import Message
from ..ipc.server import Connection
from ..spool.spool import Spool
from ..system.clock import Clock
from .child import Child, ChildProcess

#: Most saves that were asked for and not answered.
MAX_WAITING = 256

#: Takes as much of a frame as any save's number.
_LONGEST = 1 << 62


@dataclass
class _Request:
    """A save that was asked for; ``until``: monotonic time at which its client gets an answer in any case."""

    connection: Connection
    seq: Any
    fields: Message
    until: float
    answered: bool = False

    def answer(self, message: Message) -> None:
        if not self.answered:
            self.answered = True
            self.connection.send({"seq": self.seq, **message})


class SocketSaves:
    """The agent's end: the queue, and the saver.

    Parameters
    ----------
    selector : selectors.BaseSelector
        The agent's.
    """

    def __init__(self, selector: selectors.BaseSelector, spool: Spool, config: Config, clock: Clock) -> None:
        self._clock = clock
        self._saver = Child(
            selector, lambda: _SaverProcess(spool, "saver"), config, clock, self._on_answer, self._on_death
        )
        self._patience_s = config.agent_patience_s
        self._waiting: deque[_Request] = deque()
        self._under_way: _Request | None = None
        self._number = 0

    @property
    def count(self) -> int:
        """Saves that were asked for and are not done."""
        return len(self._waiting) + (self._under_way is not None)

    def ask(self, connection: Connection, message: Message, limit_s: float) -> None:
        """Save as a client asks; the answer follows within about ``limit_s`` seconds, and here only if it is refused.

        A client that goes away before its answer has asked all the same.
        """
        fields = {name: value for name, value in message.items() if name not in ("op", "seq", "timeout_s")}
        request = _Request(connection, message.get("seq"), fields, self._clock.monotonic() + limit_s)
        try:
            protocol.encode({**fields, "op": "save", "n": _LONGEST})
        except (ProtocolError, ValueError, RecursionError) as error:
            why = "is nested too deep" if isinstance(error, RecursionError) else "does not fit into a frame"
            request.answer(_error("ProtocolError", f"This save {why}. Save large metadata as a file"))
            return
        if self.count >= MAX_WAITING:
            why = f"{self.count} saves wait already, which is the most. Wait for the answers, and save less often"
            request.answer(_error("BacklogError", why))
            return
        self._waiting.append(request)
        self._go_on()

    def tick(self, now: float) -> None:
        """Answer whom the time is over for, and go on after the saver's death."""
        for request in [request for request in self._waiting if now >= request.until]:
            self._waiting.remove(request)
            request.answer(_error("WaitTimeout", "The save was not begun in time; nothing was saved"))
        if self._under_way is not None and now >= self._under_way.until:
            why = "The save is not done in time and goes on; 'list' will show it"
            self._under_way.answer(_error("WaitTimeout", why))
        self._saver.tick()
        if self._saver.in_vain_s >= self._patience_s:
            why = f"No saver could be started for {self._patience_s:g} s: {self._saver.trouble}"
            while self._waiting:
                self._waiting.popleft().answer(_error("AgentError", why))
        self._go_on()

    def _go_on(self) -> None:
        # One at a time: what waits here can be given up, and a saver that is busy need not read.
        if self._under_way is None and self._waiting and self._saver.ensure():
            self._under_way = self._waiting.popleft()
            self._number += 1
            self._saver.tell({**self._under_way.fields, "op": "save", "n": self._number})

    def _on_answer(self, message: Message) -> None:
        if self._under_way is None or message.pop("n", None) != self._number:
            return
        request, self._under_way = self._under_way, None
        self._saver.is_well()
        request.answer(message)
        self._go_on()

    def _on_death(self, spoke: bool) -> None:
        request, self._under_way = self._under_way, None
        if request is not None:
            why = "The saver died; agent.log says more. Save again, unless 'list' shows that it was saved"
            request.answer(_error("AgentError", why))

    def stop(self) -> None:
        """The agent ends: so does the saver, and who still waits is told."""
        self._saver.stop()
        for request in [*([self._under_way] if self._under_way else []), *self._waiting]:
            request.answer(_error("AgentError", "The agent ends. The task is over, or has been for long"))
        self._waiting.clear()


class _SaverProcess(ChildProcess):
    """A saver."""

    def stop(self) -> None:
        # It is to tell an agent that ends, and has no more use for its leases, from one that was killed.
        with contextlib.suppress(OSError):
            self.sock.send(protocol.encode({"op": "stop"}))
        super().stop()


def _error(kind: str, why: str) -> Message:
    return {"error": f"{why}.", "kind": kind}

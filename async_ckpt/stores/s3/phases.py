"""The time limits of every phase of a request."""

from __future__ import annotations

from typing import NamedTuple

import anyio

#: Fewer bytes than this within ``stall_s`` are a stall: one byte a minute keeps no connection alive for ever.
_LEAST_BYTES = 1 << 10


class Timeouts(NamedTuple):
    """Of the phases of a request, in seconds; see ``Config``. ``connect_s`` is the transport's own affair."""

    connect_s: float
    answer_s: float
    stall_s: float


class PhaseTimer:
    """The limits of one request: ends it when the phase that it is in lasts too long.

    Use it as a context manager around the request, and tell it what happens.

    Raises
    ------
    TimeoutError
        When the block is left because of a limit; says what was waited for.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._scope = anyio.CancelScope()
        self._untold = 0
        self._doing = ""
        self._limit_s = self._since = 0.0

    def __enter__(self) -> PhaseTimer:
        # Until a body is taken nobody tells us that there is a connection.
        self._enter("no answer", self.timeouts.connect_s + self.timeouts.answer_s)
        self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool | None:
        swallow = self._scope.__exit__(kind, error, trace)  # type: ignore[arg-type]
        if self._scope.cancelled_caught:
            raise TimeoutError(f"{self._doing} within {self._limit_s:g} s") from None
        return swallow

    def _enter(self, doing: str, limit_s: float) -> None:
        now = anyio.current_time()
        self._untold = 0
        if doing == self._doing and now < self._since + limit_s / 20:
            return  # Moving a deadline costs as much as reading a piece: a twentieth of it is not missed.
        self._doing, self._limit_s, self._since = doing, limit_s, now
        self._scope.deadline = now + limit_s

    def waits(self, seconds: float) -> None:
        """The next piece is held back on purpose for so long."""
        self._since = 0.0  # Whatever follows counts from then.
        self._scope.deadline = anyio.current_time() + self.timeouts.stall_s + seconds

    def sending(self) -> None:
        """The connection takes the next piece of the body."""
        self._enter("the server took no more of the body", self.timeouts.stall_s)

    def sent(self) -> None:
        """It has taken all of it; the little that lies in buffers goes out within the limit of the answer."""
        self._enter("no answer", self.timeouts.answer_s)

    def answered(self) -> None:
        """The answer's head is there."""
        self._enter("the answer did not go on", self.timeouts.stall_s)

    def received(self, count: int) -> None:
        """So many bytes of the answer's body are there."""
        self._untold += count
        if self._untold >= _LEAST_BYTES:
            self._enter("the answer did not go on", self.timeouts.stall_s)

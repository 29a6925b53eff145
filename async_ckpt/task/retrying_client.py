"""Asking an agent again and again until a deadline. It may be busy, be started again, hang and be ended, or not be
there at all. What was saved lies on the disk meanwhile, so nothing is lost by waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import LOOK_S, Config
from ..errors import NoAgent, WaitTimeout
from ..ipc.client import AgentClient
from ..ipc.protocol import Message


class RetryingClient:
    """Asks until a deadline (monotonic seconds).

    Parameters
    ----------
    check : callable
        Called whenever there is no answer; raises where there never will be one.
    """

    def __init__(
        self, client: AgentClient, config: Config, deadline: float, check: Callable[[], None] = lambda: None
    ) -> None:
        self._client, self._config, self._deadline, self._check = client, config, deadline, check
        #: Why there was no answer the last time; empty: there was one.
        self.trouble = ""

    def ask(self, op: str, timeout_s: float, **fields: Any) -> Message | None:
        """What the agent says within ``timeout_s`` seconds; None: nothing yet.

        Raises
        ------
        AgentError, WaitTimeout
            There is none, or it has said nothing, and the deadline is over; or it refuses.
        """
        limit = timeout_s + self._config.reply_timeout_s
        try:
            answer = self._client.request(op, limit, timeout_s=timeout_s, **fields)
        except (NoAgent, WaitTimeout) as error:
            self._check()
            left = self._deadline - self._client.clock.monotonic()
            if left <= 0:
                raise
            self.trouble = error.what
            if isinstance(error, NoAgent):
                self._client.clock.sleep(min(LOOK_S, left))
            return None
        self.trouble = ""
        return answer

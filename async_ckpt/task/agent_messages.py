"""What the agent tells its task without being asked, in lines for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..config import STORED_LINE_S, Config
from ..layout import TaskInfo
from ..system.clock import REAL_CLOCK, Clock
from .progress import format_bytes, format_seconds

log = logging.getLogger(__name__)


class AgentMessages:
    """Says what the agent tells; see ``ipc/protocol.py`` for its messages."""

    def __init__(self, task: TaskInfo, config: Config, clock: Clock = REAL_CLOCK) -> None:
        self._task, self._config, self._clock = task, config, clock
        self._said: set[str] = set()
        #: What the store refused, by id, until a save has said so.
        self._refused: dict[str, str] = {}
        #: When the next line may say what is in the store (monotonic seconds), and how much was not said since.
        self._next_stored, self._unsaid = 0.0, 0

    def receive(self, push: Mapping[str, Any]) -> None:
        """Take in one message; from the thread that listens to the agent."""
        identity, why = str(push.get("id")), str(push.get("why"))
        if push["push"] == "notice" and why not in self._said:  # Each agent that is started tells it.
            self._said.add(why)
            log.warning(why)
        elif push["push"] == "committed":
            self._say_stored(identity, push)
        elif push["push"] == "superseded":
            log.info(f"Checkpoint {identity} was {why}")
        elif push["push"] == "given up":
            ids = list(map(str, push.get("ids", [])))
            more = int(push.get("count", 0)) - len(ids)
            given_up = ", ".join(ids) + (f" and {more} more" if more > 0 else "")
            beside = ", ".join(map(str, push.get("beside", [])))
            first = f"{identity} goes first{f', beside it {beside}' if beside else ''}"
            log.warning(f"{why}: {first}; given up, unless there is time left over: {given_up}")
        elif push["push"] == "failed":
            mine = identity.startswith(f"{self._task.attempt}.")
            if mine and push.get("refused"):
                self._refused[identity] = why
            end = ", and the step will fail at its end" if mine and self._config.on_failure == "raise" else ""
            log.warning(f"Checkpoint {identity} is not in the store{end}: {why}")

    def _say_stored(self, identity: str, push: Mapping[str, Any]) -> None:
        """Say it now and then: there may be several a second."""
        now = self._clock.monotonic()
        if not self._config.log_stored or now < self._next_stored:
            self._unsaid += 1
            return
        others = f". So are {self._unsaid} more that were saved since the last such line" if self._unsaid else ""
        self._next_stored, self._unsaid = now + STORED_LINE_S, 0
        size, after = format_bytes(push["size"]), format_seconds(push["after_s"])
        log.info(f"Checkpoint {identity} ({size}) is in the store, {after} after its save{others}")

    def take_refused(self) -> dict[str, str]:
        """What the store refused since this was asked last: id → why."""
        if not self._refused:
            return {}
        refused, self._refused = self._refused, {}
        return refused

"""What the agent tells its task without being asked, in lines for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..config import Config
from ..layout import TaskInfo

log = logging.getLogger(__name__)


class AgentMessages:
    """Says what the agent tells; see ``ipc/protocol.py`` for its messages."""

    def __init__(self, task: TaskInfo, config: Config) -> None:
        self._task, self._config = task, config
        self._said: set[str] = set()
        #: What the store refused, by id, until a save has said so.
        self._refused: dict[str, str] = {}

    def receive(self, push: Mapping[str, Any]) -> None:
        """Take in one message; from the thread that listens to the agent."""
        identity, why = str(push.get("id")), str(push.get("why"))
        if push["push"] == "notice" and why not in self._said:  # Each agent that is started tells it.
            self._said.add(why)
            log.warning(why)
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

    def take_refused(self) -> dict[str, str]:
        """What the store refused since this was asked last: id → why."""
        if not self._refused:
            return {}
        refused, self._refused = self._refused, {}
        return refused

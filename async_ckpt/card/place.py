"""Where Metaflow keeps the cards of a task, below the root of all cards (``CardDatastore``)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..layout import TaskInfo

TYPE = "checkpoint"


@dataclass(frozen=True)
class CardPlace:
    """Keys of one card.

    Parameters
    ----------
    page : str
        The page.
    update : str
        What has changed since: viewers look at this.
    uuid : str
        What Metaflow calls the card's hash. It is the same for all attempts of a task, so that it has one card.
    """

    page: str
    update: str
    uuid: str


def card_place(task: TaskInfo) -> CardPlace:
    """The card of a task's checkpoints."""
    uuid = hashlib.sha1(f"{TYPE} {task.pathspec}".encode(), usedforsecurity=False).hexdigest()
    folder = f"{task.flow}/runs/{task.run}/steps/{task.step}/tasks/{task.task}"
    return CardPlace(f"{folder}/cards/{TYPE}-{uuid}.html", f"{folder}/runtime/{TYPE}-{uuid}.data.json", uuid)

"""``recovery`` in the spool: how far a loss would throw the task back, as its agent has written it down last.

One JSON object, replaced as a whole by the agent alone. An agent that is started again goes on from it, and every
process of the task reads it to know whether to save (``task/due.py``). It is a note, never the truth about a
checkpoint: where it is missing or damaged, more counts as lost than would be.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..manifest import dump
from ..system.clock import Moment, read_moment
from ..system.files import write_atomically

#: The file's name in the spool.
NAME = "recovery"


@dataclass
class Point:
    """Where a task would go on if this machine were lost now.

    Parameters
    ----------
    reached : tuple
        (attempt, version) of the newest checkpoint in the store; (-1, -1): there is none.
    since : Moment or None
        Work that was done since then would be lost. None: that is not known.
    resumed : tuple
        (attempt, version) of what the attempt has begun with, where that was only on this disk.
    """

    reached: tuple[int, int] = (-1, -1)
    since: Moment | None = None
    resumed: tuple[int, int] = (-1, -1)


@dataclass
class Recovery:
    """What the file says.

    Parameters
    ----------
    attempt : int
        The one that runs.
    began : Moment or None
        When it began.
    latest, any : Point
        By the checkpoints that a retry loads by itself; and by all, for those who load by hand (``latest=False``).
    has_latest : bool
        Whether the attempt has saved one that a retry loads by itself.
    saved : Moment or None
        When the newest of these was captured; before there is one, the newest of all.
    is_on_its_way : bool
        Whether a checkpoint is sent or committed now, and nothing holds it up.
    ends : dict
        Who has said that the end of the machine comes, and when it was said.
    upload_s : list of float
        How many seconds each of the last checkpoints takes at full speed.
    is_exceeded : bool
        Whether it was said that ``max_exposure`` is exceeded.
    """

    attempt: int = -1
    began: Moment | None = None
    latest: Point = field(default_factory=Point)
    any: Point = field(default_factory=Point)
    has_latest: bool = False
    saved: Moment | None = None
    is_on_its_way: bool = False
    ends: dict[str, Moment] = field(default_factory=dict)
    upload_s: list[float] = field(default_factory=list)
    is_exceeded: bool = False


def read(directory: str) -> Recovery:
    """What the file in a spool says; nothing is known where it is missing, damaged, or of another version."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        with open(os.path.join(directory, NAME), "rb") as file:
            data = json.load(file)
        return Recovery(
            attempt=int(data["attempt"]), began=read_moment(data["began"]), latest=_point(data["latest"]),
            any=_point(data["any"]), has_latest=bool(data["has_latest"]), saved=read_moment(data["saved"]),
            ends={str(who): found for who, said in data["ends"].items() if (found := read_moment(said))},
            is_on_its_way=bool(data["is_on_its_way"]),
            upload_s=[float(seconds) for seconds in data["upload_s"]], is_exceeded=bool(data["is_exceeded"]),
        )  # fmt: skip
    return Recovery()


def write(directory: str, recovery: Recovery) -> None:
    """Replace the file. ``OSError`` if that cannot be done."""
    write_atomically(os.path.join(directory, NAME), dump(asdict(recovery)))


def _point(data: Any) -> Point:
    reached, resumed = ((int(attempt), int(version)) for attempt, version in (data["reached"], data["resumed"]))
    return Point(reached, read_moment(data["since"]), resumed)

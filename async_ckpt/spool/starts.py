"""Which start of its attempt a task is, as its processes on this machine know it (see ``async_ckpt/ranks/starts.py``).

``start.<attempt>`` in the spool, one JSON object under ``flock``::

    {"token": <hex>, "start": n or null, "sure": bool, "first": bool}

``token`` says whose claims in the store are this spool's. ``sure`` is false from the start of the task's process until
its agent has asked the store, or until somebody could not wait for that: then the number is one that nobody is likely
to have. A sure number stays as it is: savers have used it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import SPOOL_LOCK_TIMEOUT_S
from ..layout import TaskInfo
from ..manifest import dump
from ..system.files import locked
from .directories import spool_errors


@dataclass(frozen=True)
class Start:
    """A start of an attempt.

    Parameters
    ----------
    number : int
        From 0.
    first : bool
        Nobody has begun the attempt before, as far as is known.
    alone : bool
        The store was not asked.
    """

    number: int
    first: bool
    alone: bool = False


def begin(path: str) -> None:
    """The task's process starts: what an earlier one of this machine knew is to be asked anew."""
    with _content(path) as content:
        content["sure"] = False
        content.setdefault("token", secrets.token_hex(8))


def read(path: str) -> Start | None:
    """What is known; None: nothing for sure yet.

    Raises
    ------
    SpoolError
        It cannot be read.
    """
    with _errors(path):
        try:
            with open(path, "rb") as file:
                return _start(json.loads(file.read() or b"{}"))
        except (FileNotFoundError, ValueError):  # Not yet there, or it is written to in this moment.
            return None


def token(path: str, known: str | None) -> str:
    """By what the claims of this spool are known again; where it does not say, as ``known``."""
    with _content(path) as content:
        content.setdefault("token", known or secrets.token_hex(8))
        return str(content["token"])


def note(path: str, number: int, *, first: bool) -> Start:
    """The store has been asked. Returns what counts: a number that was sure already stays."""
    with _content(path) as content:
        found = _start(content)
        if found is None:
            content.update(start=number, sure=True, first=first, alone=False)
        return found or Start(number, first)


def go_alone(path: str, task: TaskInfo) -> Start:
    """The store does not answer. The number is the one that this spool had before; or one of many, by chance, so that
    it is nobody else's (for a gang's nodes the same one, as they save together).
    """
    with _content(path) as content:
        found = _start(content)
        if found is not None:
            return found
        number = content.get("start")
        if not isinstance(number, int):
            most = task.most_starts
            number = most // 2 + (secrets.randbelow(max(most * 2 // 5, 1)) if task.nodes == 1 else 0)
        content.update(start=number, sure=True, first=False, alone=True)
        return Start(number, first=False, alone=True)


def _start(content: Any) -> Start | None:
    if not isinstance(content, dict) or not content.get("sure") or not isinstance(content.get("start"), int):
        return None
    return Start(content["start"], bool(content.get("first")), bool(content.get("alone")))


@contextlib.contextmanager
def _content(path: str) -> Iterator[dict[str, Any]]:
    """What the file says, to be changed."""
    with (
        _errors(path),
        locked(path, timeout_s=SPOOL_LOCK_TIMEOUT_S) as fd,
        open(fd, "r+b", closefd=False) as file,
    ):
        try:
            content = json.loads(file.read() or b"{}")
        except ValueError:
            content = {}
        before = dump(content)
        yield content
        if (after := dump(content)) != before:
            file.seek(0)
            file.write(after)
            file.truncate()


def _errors(path: str) -> contextlib.AbstractContextManager[None]:
    return spool_errors("Which start of the attempt this is cannot be told", path)

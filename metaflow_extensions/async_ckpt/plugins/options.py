"""The options of ``@checkpoint``: each is declared once, with its default and what it takes.

Metaflow hands options over as text: ``run --with checkpoint:max_pending=3`` does, and every task of a step that got its
decorator so is started with all of them (``show_card=True``, ``temp_dir_root=None``). ``convert`` makes of text what
the same option is in Python. None, and the text "None", stand for the default, and for ``load_policy`` for "none".
"""

from __future__ import annotations

import decimal
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from async_ckpt import layout
from async_ckpt.capture import STRATEGIES, check_strategy
from async_ckpt.config import CHOICES
from async_ckpt.errors import UsageError
from async_ckpt.retention.rules import best_of
from async_ckpt.system import durations
from async_ckpt.task.launch import UPLOADERS
from async_ckpt.task.loader import SHARDS
from async_ckpt.task.options import SaveOptions

LOAD_POLICIES = ("fresh", "eager", "none")


@dataclass(frozen=True)
class Option:
    """One option.

    Parameters
    ----------
    default : Any
        What stands for None.
    read : callable
        Makes a value of what was given; ``ValueError``, ``TypeError`` or ``ArithmeticError`` if it is none.
    allowed : str
        What people may give.
    setting : str
        The setting's name in ``Config``, where it is another one.
    """

    default: Any
    read: Callable[[Any], Any]
    allowed: str
    setting: str = ""


def convert(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the decorator works with them.

    Raises
    ------
    UsageError
        A value is wrong: names the option, the value and what is allowed.
    """
    return {name: _convert(name, OPTIONS[name], value) for name, value in given.items()}


def _convert(name: str, option: Option, value: Any) -> Any:
    text = value.strip() if isinstance(value, str) else value
    if text is None or (isinstance(text, str) and text.lower() == "none"):
        return option.default if name != "load_policy" else "none"
    try:
        return option.read(text)
    except UsageError:
        raise
    except (ValueError, TypeError, ArithmeticError):
        raise UsageError(f"{name}={value!r} is not valid", hint=f"It is {option.allowed}") from None


def _choice(default: str | None, values: tuple[str, ...]) -> Option:
    def read(value: Any) -> Any:
        if value not in values:
            raise ValueError(value)
        return value

    return Option(default, read, f"one of {', '.join(values)}")


# Through text, numbers of numpy are read as those of Python are, and True is none.


def _flag(value: Any) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise ValueError(value)
    return found


def _count(value: Any) -> int:
    found = decimal.Decimal(str(value))
    if found < 0 or found != int(found):
        raise ValueError(value)
    return int(found)


def _seconds(value: Any) -> float:
    found = float(str(value))
    if not 0 <= found < math.inf:  # Also refuses nan.
        raise ValueError(value)
    return found


def _slowdown(value: Any) -> float:
    found = float(str(value))
    if found == 0:
        raise UsageError(
            f"max_slowdown={value!r} would hold back every upload until the end of the step",
            hint="It is a share of the time of a step, such as 0.01 for one per cent, which is the default",
        )
    if not 0 < found <= 1:  # Also refuses nan.
        raise ValueError(value)
    return found


def _best(value: Any) -> str:
    best = best_of(value)
    text = f"{best.metric} {best.mode} {best.count}"  # As text it goes to the agent.
    if best_of(text) != best:
        raise UsageError(f"keep_best={value!r}: a name with blanks or commas at its ends cannot be given")
    return text


def _folder(value: Any) -> str:
    return str(value) if type(value) is int else os.fsdecode(value)  # As text, 2024 became a number.


#: Options that are settings as well: handed on through the environment, to the agent and to subprocesses. None: what
#: the environment says.
SETTINGS: dict[str, Option] = {
    "on_failure": _choice(None, CHOICES["on_failure"]),
    "on_backlog": _choice(None, CHOICES["on_backlog"]),
    "max_pending": Option(None, _count, "a number of checkpoints, 0 for any number"),
    "max_pending_bytes": Option(None, _count, "a number of bytes, 0 for any number"),
    "dangling_links": _choice(None, CHOICES["dangling_links"]),
    "max_exposure": Option(None, durations.seconds, durations.ALLOWED, setting="max_exposure_s"),
    "keep_last": Option(None, _count, "a number of checkpoints, 0 for no such rule"),
    "keep_best": Option(None, _best, 'the name of a number, "min" or "max", and how many: ("loss", "min", 3)'),
    "keep_every": Option(None, _count, "a number, 0 for no such rule"),
    "keep_referenced": Option(None, _flag, "True or False"),
    "max_slowdown": Option(None, _slowdown, "a share above 0 and up to 1, such as 0.01 for one per cent"),
}

#: By name.
OPTIONS: dict[str, Option] = {
    "load_policy": _choice("fresh", LOAD_POLICIES),
    "load_shard": _choice("all", SHARDS),
    "temp_dir_root": Option(None, _folder, "the path of a directory"),
    "show_card": Option(True, _flag, "True or False"),
    "uploader": _choice("process", UPLOADERS),
    "storage_format": _choice(SaveOptions.storage_format, layout.STORAGE_FORMATS),
    "snapshot": Option(SaveOptions.snapshot, check_strategy, f"one of {', '.join(STRATEGIES)}"),
    "flush_timeout": Option(None, _seconds, "a number of seconds, 0 or more"),
    **SETTINGS,
}

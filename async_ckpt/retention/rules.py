"""Which checkpoints of a task its rules keep: decided without stores and clocks.

Each name is a series of its own, over all attempts of the task. A checkpoint is kept if one of the rules keeps it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import layout
from ..config import Config
from ..errors import UsageError
from ..metadata import named

MODES = ("min", "max")
#: A rule for the best ones as text: the name may be of several words.
_BEST = re.compile(r"\s*(.*?\S)[\s,]+(\S+?)(?:[\s,]+([0-9]+))?\s*", re.DOTALL)

#: The metadata of one checkpoint, as it is listed.
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Best:
    """Keep the ``count`` checkpoints whose number ``metric`` is the least (mode ``"min"``) or the greatest
    (``"max"``); ``metric`` is a name in the metadata, or ``outer.inner``.
    """

    metric: str
    mode: str
    count: int


@dataclass(frozen=True)
class Rules:
    """What to keep; with none of them, everything.

    Parameters
    ----------
    last : int
        So many of the newest; 0: this rule keeps none.
    best : Best or None
        Those that are best by a number in their metadata. One that is newer than all that have the number may get it
        yet, and is kept as well.
    every : int
        Those whose version is a multiple of this; 0: this rule keeps none.
    """

    last: int = 0
    best: Best | None = None
    every: int = 0

    def __bool__(self) -> bool:
        return bool(self.last or self.best or self.every)

    def kept(self, found: Iterable[Found]) -> dict[str, str]:
        """Which of a task's checkpoints are kept, by key, and why."""
        series: defaultdict[str, list[Found]] = defaultdict(list)
        for one in found:
            series[str(one["name"])].append(one)
        kept: dict[str, str] = {}
        for ones in series.values():
            ones.sort(key=layout.order, reverse=True)
            for key, why in self._kept_of(ones):
                kept.setdefault(key, why)
        return kept

    def _kept_of(self, newest_first: list[Found]) -> Iterable[tuple[str, str]]:
        if not self:
            yield from ((one["key"], "there are no rules") for one in newest_first)
        for one in newest_first[: self.last]:
            yield one["key"], f"it is one of the last {self.last}"
        if self.every:
            for one in newest_first:
                if layout.order(one)[1] % self.every == 0:
                    yield one["key"], f"its version is a multiple of {self.every}"
        if self.best is not None:
            yield from _kept_as_best(newest_first, self.best)

    def unjudged(self, found: Iterable[Found]) -> str:
        """What a person should know of ``best``: that the number is nowhere, or no number somewhere; empty: nothing."""
        if self.best is None:
            return ""
        values = [value_of(one, self.best.metric) for one in found]
        if not values or all(isinstance(value, float) for value in values):
            return ""
        name = self.best.metric
        if not any(isinstance(value, float) for value in values):
            return f"keep_best: no checkpoint has the number {name!r} in its metadata, so nothing is removed"
        wrong = next((value for value in values if value is not None and not isinstance(value, float)), None)
        if wrong is not None:
            return (
                f"keep_best: {name!r} is no number in the metadata of some checkpoints (one has {wrong!r:.60}): they "
                "are not among the best"
            )
        return ""


def _kept_as_best(newest_first: list[Found], best: Best) -> Iterable[tuple[str, str]]:
    judged = [(value, one) for one in newest_first if isinstance(value := value_of(one, best.metric), float)]
    if not judged:
        yield from ((one["key"], f"no checkpoint has the number {best.metric!r}") for one in newest_first)
        return
    newest_judged = layout.order(judged[0][1])
    # Of two that are equal the newer one is kept: the sort leaves their order as it is.
    judged.sort(key=lambda pair: pair[0] if best.mode == "min" else -pair[0])
    for _, one in judged[: best.count]:
        yield one["key"], f"it is one of the best {best.count} by {best.metric!r}"
    for one in newest_first:
        if layout.order(one) > newest_judged:
            yield one["key"], f"it may get the number {best.metric!r} yet"


def value_of(found: Found, metric: str) -> float | str | None:
    """A number of the metadata; a text that says what stands there where that is no number; None: nothing does."""
    value = named(found.get("metadata"), metric)
    if value is None:
        return None
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            return str(value)
        return number if math.isfinite(number) else str(value)
    return str(value)


def best_of(given: Any) -> Best:
    """What ``keep_best`` was given: ``("loss", "min", 3)``, ``["loss", "min"]`` or ``"loss min 3"``.

    Raises
    ------
    UsageError
        It is none of these.
    """
    parts = match.groups("1") if isinstance(given, str) and (match := _BEST.fullmatch(given)) else given
    hint = 'It is the name of a number, "min" or "max", and how many: ("loss", "min", 3) or "loss min 3"'
    if (
        not isinstance(parts, (list, tuple))
        or len(parts) not in (2, 3)
        or not isinstance(parts[0], str)
        or not parts[0]
    ):
        raise UsageError(f"keep_best={given!r} is not valid", hint=hint)
    if parts[1] not in MODES:
        raise UsageError(f"keep_best={given!r}: {parts[1]!r} is neither min nor max", hint=hint)
    count = str(parts[2]) if len(parts) == 3 else "1"
    if not (count.isascii() and count.isdecimal() and int(count)):
        raise UsageError(f"keep_best={given!r}: {count!r} is no number of checkpoints from 1 on", hint=hint)
    return Best(parts[0], parts[1], int(count))


def rules_of(config: Config) -> Rules:
    """The rules that the settings name.

    Raises
    ------
    UsageError
        ``keep_best`` names none.
    """
    return Rules(config.keep_last, best_of(config.keep_best) if config.keep_best else None, config.keep_every)

"""Choosing checkpoints by what their metadata says: ``metadata={"loss": ("<", 0.3)}``, or ``loss<0.3`` as text."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import UsageError
from ..metadata import named

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq, "<": operator.lt, ">": operator.gt,
    "=": operator.eq,
}  # fmt: skip
_CONDITION = re.compile(
    rf"\s*(?P<name>[^<>=!]+?)\s*(?P<operator>{'|'.join(_OPERATORS)})\s*(?P<value>.*?)\s*", re.DOTALL
)
_HINT = "A condition is a name, one of < <= > >= == !=, and a value: loss<0.3"

Found = TypeVar("Found", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Condition:
    """One that a checkpoint meets, or not.

    Parameters
    ----------
    name : str
        In its metadata, ``outer.inner`` in nested dicts; or a field of its own, such as ``size`` or ``name``.
    operator : str
        One of ``<``, ``<=``, ``>``, ``>=``, ``==``, ``!=``.
    value : Any
        What is compared with. Numbers are compared with numbers alone, and texts with texts.
    """

    name: str
    operator: str
    value: Any

    def holds(self, found: Mapping[str, Any]) -> bool:
        """Whether a checkpoint meets it. One that has nothing of that name meets none."""
        value = value_of(found, self.name)
        if value is None or not _is_comparable(value, self.value):
            return False
        return _OPERATORS[self.operator](value, self.value)


def conditions(given: Mapping[str, Any] | None, texts: Iterable[str] = ()) -> list[Condition]:
    """Conditions of ``metadata=`` (a value stands for ``("==", value)``), and those that are given as texts.

    Raises
    ------
    UsageError
        One of them is none.
    """
    found = []
    for name, wanted in (given or {}).items():
        sign, value = wanted if isinstance(wanted, (tuple, list)) and len(wanted) == 2 else ("==", wanted)
        if not isinstance(name, str) or sign not in _OPERATORS or not _is_scalar(value):
            raise UsageError(f"metadata={{{name!r}: {wanted!r}}} is no condition", hint='It reads {"loss": ("<", 0.3)}')
        found.append(Condition(name, sign, value))
    for text in texts:
        match = _CONDITION.fullmatch(text)
        if match is None or not match["value"]:
            raise UsageError(f"{text!r} is no condition", hint=_HINT)
        found.append(Condition(match["name"], match["operator"], _read(match["value"])))
    return found


def _read(text: str) -> Any:
    """A value as somebody types it: a number, true or false, or a text, with or without quotes."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def value_of(found: Mapping[str, Any], name: str) -> Any:
    """What a checkpoint's metadata has under a name, or else the checkpoint itself; None: nothing."""
    value = named(found.get("metadata"), name)
    return found.get(name) if value is None and name != "metadata" else value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float)) and value == value


def _is_comparable(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return not math.isnan(one) and not math.isnan(other)
    return isinstance(one, str) and isinstance(other, str)


def chosen(found: Iterable[Found], wanted: Sequence[Condition], sort: str = "") -> list[Found]:
    """Those that meet all conditions, in the order in which they come, or sorted by a name; with ``-`` before it, the
    greatest first. What has nothing of that name, or nothing that can be compared with the others', comes last.
    """
    left = [one for one in found if all(condition.holds(one) for condition in wanted)]
    if not sort:
        return left
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    values = {id(one): value_of(one, name) for one in left}
    numbers = [one for one in left if _is_number(values[id(one)])]
    texts = [one for one in left if isinstance(values[id(one)], str)]
    rest = [one for one in left if not _is_number(values[id(one)]) and not isinstance(values[id(one)], str)]
    for group in (numbers, texts):
        group.sort(key=lambda one: values[id(one)], reverse=descending)
    return [*numbers, *texts, *rest]


def names_of(wanted: Iterable[Condition], sort: str) -> list[str]:
    """By which names is chosen and sorted."""
    names = [*(condition.name for condition in wanted), *([sort.removeprefix("-")] if sort else [])]
    return list(dict.fromkeys(names))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)

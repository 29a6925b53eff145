"""Which of two checkpoints is the newer one.

Within a task its (attempt, version) says so. Between tasks it is the moment of the save, ``created_at``, in UTC.
Clients of old, and metaflow-checkpoint, write only ``created_on``, the local time of a machine whose zone nobody
knows: it counts as the earliest moment that it can have been, 14 hours before the same time in UTC. So a checkpoint of
theirs may be taken for up to 26 hours older than it is, and never holds up one that is newer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from .reference import order

T = TypeVar("T", bound=Mapping[str, Any])

#: How far local time is ahead of UTC, where it is most (Kiritimati).
_FARTHEST_AHEAD = timedelta(hours=14)
_UNKNOWN = datetime.min.replace(tzinfo=timezone.utc)

#: Clocks of two machines differ by so much, and both are right.
_SKEW = timedelta(minutes=1)


def moment(reference: Mapping[str, Any]) -> datetime:
    """When it was saved, in UTC; the earliest that it can have been where that is not known."""
    for at in _times(reference):
        with contextlib.suppress(OverflowError):  # At one of the ends of time.
            return at.astimezone(timezone.utc) if at.tzinfo else at.replace(tzinfo=timezone.utc) - _FARTHEST_AHEAD
    return _UNKNOWN


def newer(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether ``one`` is newer than ``other``."""
    if one.get("pathspec") == other.get("pathspec"):
        return order(one) > order(other)
    return moment(one) > moment(other)


def blocks(latest: Mapping[str, Any], reference: Mapping[str, Any], now: datetime | None = None) -> bool:
    """Whether ``latest`` stays the latest although ``reference`` was committed now.

    One of another task from the future does not: a clock was wrong there, and it would stay for as long as that.
    """
    if not newer(latest, reference):
        return False
    now = now or datetime.now(timezone.utc)
    return latest.get("pathspec") == reference.get("pathspec") or moment(latest) <= now + _SKEW


def newest_first(references: Iterable[T]) -> list[T]:
    """Sort checkpoints of several tasks. Those of one task are in the order of their versions, even if its clock went
    backwards: none counts as older than one that was saved before it.
    """
    ranks: list[tuple[tuple[datetime, str, tuple[int, int]], T]] = []
    reached: dict[str, datetime] = {}
    for reference in sorted(references, key=order):
        task = str(reference.get("pathspec"))
        reached[task] = max(moment(reference), reached.get(task, _UNKNOWN))
        ranks.append(((reached[task], task, order(reference)), reference))
    return [reference for _, reference in sorted(ranks, key=lambda pair: pair[0], reverse=True)]


def shown(reference: Mapping[str, Any]) -> str:
    """When it was saved, for people: in the zone of this machine, with its offset; as it stands, without one, where the
    zone is not known.
    """
    for at in _times(reference):
        with contextlib.suppress(OverflowError, OSError, ValueError):
            return (at.astimezone() if at.tzinfo else at).isoformat(sep=" ", timespec="seconds")
    return str(reference.get("created_on") or "-")[:19]


def _times(reference: Mapping[str, Any]) -> Iterator[datetime]:
    for field in ("created_at", "created_on"):
        text: Any = reference.get(field)
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            # Python 3.10 does not know the Z.
            yield datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)

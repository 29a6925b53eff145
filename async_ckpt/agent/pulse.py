"""How what is under way gets on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: What may only grow: the number of the try, and what it has brought so far.
Mark = tuple[int, int]


@dataclass
class _Beat:
    """The highest mark that was seen, and since when; where and when its try began (monotonic seconds)."""

    mark: Mark
    since: float
    first: Mark
    began: float


class Pulse:
    """What was seen, by checkpoint."""

    def __init__(self) -> None:
        self._seen: dict[str, _Beat] = {}

    def silent_s(self, identity: str, mark: Mark, now: float) -> float:
        """Seconds since it has got further than ever in this try (``now``: monotonic seconds).

        Bytes that are taken back and sent again show nothing new.
        """
        beat = self._seen.get(identity)
        if beat is None or mark[0] != beat.mark[0]:
            beat = self._seen[identity] = _Beat(mark, now, mark, now)
        elif mark > beat.mark:
            beat.mark, beat.since = mark, now
        return now - beat.since

    def bytes_per_s(self, identity: str, now: float) -> float:
        """How fast this try of it gets on, all in all."""
        beat = self._seen[identity]
        return (beat.mark[1] - beat.first[1]) / max(now - beat.began, 1e-3)

    def has_moved(self, identity: str) -> bool:
        """Whether this try of it has brought anything yet."""
        return self._seen[identity].mark > self._seen[identity].first

    def lasted_s(self, identity: str, now: float) -> float:
        """How long this try of it has lasted, in seconds."""
        return now - self._seen[identity].began

    def keep(self, identities: Iterable[str]) -> None:
        """Forget all others."""
        self._seen = {identity: self._seen[identity] for identity in identities if identity in self._seen}

"""How long what is under way has shown nothing new."""

from __future__ import annotations

from collections.abc import Iterable

#: What may only grow: the number of the try, and what it has brought so far.
Mark = tuple[int, int]


class Pulse:
    """By checkpoint: the highest mark that was seen, and since when."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Mark, float]] = {}

    def silent_s(self, identity: str, mark: Mark, now: float) -> float:
        """Seconds since it has got further than ever in this try (``now``: monotonic seconds).

        Bytes that are taken back and sent again show nothing new.
        """
        known = self._seen.get(identity)
        if known is None or mark > known[0]:
            known = self._seen[identity] = mark, now
        return now - known[1]

    def keep(self, identities: Iterable[str]) -> None:
        """Forget all others."""
        self._seen = {identity: self._seen[identity] for identity in identities if identity in self._seen}

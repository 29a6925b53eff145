"""What came of rounds, added up."""

from __future__ import annotations

from dataclasses import dataclass, fields

#: So begin the names of fields of which the largest counts.
_LARGEST = ("most_", "slowest_")


@dataclass
class Sums:
    """A dataclass of numbers, counters and lists."""

    def add(self, other: Sums) -> None:
        """Add another's, of the same class."""
        for name in (each.name for each in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, theirs) if name.startswith(_LARGEST) else mine + theirs)

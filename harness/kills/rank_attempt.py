"""What ranks that save together tell, and one attempt of their task from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.kills.from_outside import Program
from harness.kills.ledger import Ledger, Save
from harness.kills.state_ranks import Spec


class Told:
    """What the ranks of all attempts have told: so many save together each time."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.ledger = Ledger()
        #: How many saves were begun, and have returned, each rank's by itself.
        self.begun = self.saved = 0
        self._parts: Counter[str] = Counter()
        #: (attempt, start) → what each rank has begun with.
        self._beginnings: dict[tuple[int, int], list[Any]] = {}

    def take(self, line: dict[str, Any], attempt: int) -> None:
        if "saved" in line:
            identity = ".".join(map(str, line["saved"]))
            self.saved += 1
            self._parts[identity] += 1
            if self._parts[identity] == self._ranks:  # Now it is promised.
                self.ledger.promised[identity] = Save(identity, line["number"], line["kind"])
        elif "begin" in line:
            self.begun += 1
        elif "resumed" in line:
            found = line["from"]
            self.ledger.take({"resumed": None if found is None else [*found, line["fault"]]})
            self._beginnings.setdefault((attempt, line["start"]), []).append(found)
        else:
            self.ledger.take(line)

    def differing(self) -> list[str]:
        """Starts whose ranks did not begin with the same."""
        return [
            f"the ranks of start {start} of attempt {attempt} began with {found}"
            for (attempt, start), found in self._beginnings.items()
            if any(each != found[0] for each in found)
        ]


class Attempt(Program):
    """One attempt from outside."""

    def __init__(self, spec: Spec, environment: Mapping[str, str], told: Told) -> None:
        self._told, self._number = told, spec.attempt
        #: Of the ranks that were started last: the number of their start, their processes, how many go on.
        self.start, self.ranks, self.resumed = -1, [0] * spec.ranks, 0
        super().__init__("harness.kills.state_ranks", spec.to_text(), environment)

    def __enter__(self) -> Attempt:
        return self

    def take(self, line: dict[str, Any]) -> None:
        self._told.take(line, self._number)
        if "pids" in line:
            self.start, self.ranks, self.resumed = line["start"], line["pids"], 0
        self.resumed += "resumed" in line and line["start"] == self.start

    def others(self) -> list[int]:
        return self.ranks

"""What is known of a round from outside: what was promised, what was reported, who died when."""

from __future__ import annotations

import re
import time
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from async_ckpt.spool.journal import order

#: Why a checkpoint may have failed: its file was rewritten in place while nobody held a lease.
_TORN = re.compile(r"was written to|was rewritten before it could be copied")

#: An agent that died so long before its task may not have been replaced by one that holds the leases (seconds).
_SUCCESSION_S = 5.0


@dataclass(frozen=True)
class Save:
    """A promise: ``id`` is the product's, ``number`` and ``kind`` tell the content."""

    id: str
    number: int
    kind: str

    @property
    def order(self) -> tuple[int, int]:
        """(attempt, version)."""
        return order(self.id)


@dataclass
class Ledger:
    """See the module's docstring. Times are monotonic seconds."""

    begun: dict[int, str] = field(default_factory=dict)
    promised: dict[str, Save] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    #: What an attempt began with, and the newest promise at that time.
    resumed: list[tuple[tuple[int, int] | None, tuple[int, int]]] = field(default_factory=list)
    tasks_died: dict[int, float] = field(default_factory=dict)
    agents_died: list[float] = field(default_factory=list)
    listed: set[str] | None = None
    slowest_save_s: float = 0.0
    slowest_write_s: float = 0.0

    @property
    def newest(self) -> tuple[int, int]:
        """Order of the newest promise; (-1, -1) where there is none."""
        return max((save.order for save in list(self.promised.values())), default=(-1, -1))

    def take(self, line: dict[str, Any]) -> None:
        """Take in what a saver told."""
        if "begin" in line:
            number, kind = line["begin"]
            self.begun[number] = kind
        elif "saved" in line:
            save = Save(*line["saved"])
            if save.id in self.promised:
                self.errors.append(f"{save.id} was promised twice")
            self.promised[save.id] = save
            self.slowest_save_s = max(self.slowest_save_s, line["seconds"][0])
            self.slowest_write_s = max(self.slowest_write_s, line["seconds"][1])
        elif "resumed" in line:
            self._take_resumed(line["resumed"])
        elif "error" in line:
            self.errors.append(line["error"])
        elif line.get("report") or line.get("flush"):
            self.said.append(line.get("report") or line["flush"])
        elif "listed" in line:
            self.listed = set(line["listed"])

    def _take_resumed(self, found: list[Any] | None) -> None:
        if found is None:
            self.resumed.append((None, self.newest))
            return
        attempt, version, fault = found
        if fault:
            self.errors.append(f"what was loaded, {attempt}.{version}, is not whole: {fault}")
        self.resumed.append(((attempt, version), self.newest))

    def task_died(self, attempt: int) -> None:
        self.tasks_died.setdefault(attempt, time.monotonic())

    def agent_died(self) -> None:
        self.agents_died.append(time.monotonic())

    def told_of(self, identity: str) -> str:
        """What people were told of it, by a push or at a flush; empty: nothing."""
        name = re.compile(rf"(?<![\w.]){re.escape(identity)}(?!\d)")
        return "; ".join(dict.fromkeys(line for line in self.said if name.search(line)))

    def may_have_failed(self, identity: str) -> bool:
        """Whether what was told can be true: all who held its leases, task and agent, were dead at some time."""
        died = self.tasks_died.get(order(identity)[0])
        unguarded = died is not None and any(time_ >= died - _SUCCESSION_S for time_ in self.agents_died)
        return unguarded and _TORN.search(self.told_of(identity)) is not None

    def misled(self, failed: Set[str]) -> list[str]:
        """Attempts that began with less than the newest promise, of those that have not failed."""
        lost = {order(identity) for identity in failed}
        wrong = []
        for found, newest in self.resumed:
            expected = max(
                (save.order for save in self.promised.values() if save.order <= newest and save.order not in lost),
                default=(-1, -1),
            )
            if (found or (-1, -1)) < expected:
                wrong.append(f"an attempt began with {found} instead of {expected}")
        return wrong

"""A round of a gang on this machine that saves together while ranks, at random with an agent, are killed with SIGKILL.

Somebody looks at the store all the time: whatever is visible must be whole. Each attempt must begin with the same
checkpoint on all ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.flow_runs.metaflow_env import FLOWS, Workspace

#: A kill comes at most so long after its victim began, in seconds: its saves take about as long.
_LONGEST_S = 1.5
_LIMIT_S = 300.0
_LIMITS_S = {"COLLECTIVE_TIMEOUT_S": 20, "COLLECTIVE_GRACE_S": 3, "SETTLE_TIMEOUT_S": 10}


class Reader(threading.Thread):
    """Looks at everything that is visible in a store, once each."""

    def __init__(self, store: Path, nodes: int) -> None:
        super().__init__(daemon=True)
        self._store, self._nodes = store / ".metaflow", nodes
        self._seen: set[str] = set()
        self.over = threading.Event()
        self.partial: list[str] = []
        self.committed = 0

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.look()

    def look(self) -> None:
        for path in self._store.glob("mf.checkpoints/checkpoints/metadata/**/*.metadata"):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self.committed += 1
                if wrong := self._wrong(path):
                    self.partial.append(f"{path.name}: {wrong}")

    def _wrong(self, path: Path) -> str:
        reference = json.loads(path.read_bytes())
        found = set()
        for rank in range(self._nodes):
            try:
                shard = json.loads((self._store / reference["key"] / f"shard-{rank}").read_bytes())
            except (OSError, ValueError) as error:
                return f"the shard of rank {rank} cannot be read: {error}"
            found.add(shard["count"])
        return "" if found == {reference["metadata"]["count"]} else f"a mixture of {found}"


def play(
    base: Path, seed: str, nodes: int, saves: int, figures: Counter[str], *, longest_s: float = _LONGEST_S
) -> list[str]:
    """One round; returns what must not be."""
    chance, said = random.Random(seed), base / "said"
    said.mkdir()
    # Where a rank's agent dies with it, nobody can say so: the others, and the retry, wait until this is over.
    limits = {f"METAFLOW_ASYNC_CKPT_{name}": str(seconds) for name, seconds in _LIMITS_S.items()}
    workspace = Workspace(base / "world", limits)
    settings = {"SAID": str(said), "NODES": str(nodes), "SAVES": str(saves)}
    reader = Reader(workspace.store, nodes)
    reader.start()
    flow = workspace.start_flow(FLOWS / "gang_kill_flow.py", env=settings)
    wrong = []
    try:
        for attempt in range(chance.choice((1, 1, 2))):
            _kill_one(said, attempt, chance, flow.process, nodes, workspace, figures, longest_s)
        flow.process.wait(_LIMIT_S)
        if flow.process.returncode:
            wrong.append(f"the flow ended with {flow.process.returncode}: {flow.output[-1500:]}")
    except Exception as error:
        flow.kill()
        wrong.append(f"{type(error).__name__}: {error}: {flow.output[-1500:]}")
    reader.over.set()
    reader.join()
    reader.look()
    wrong += [f"partial: {what}" for what in reader.partial]
    figures["checkpoints committed"] += reader.committed
    return wrong + _beginnings(said, nodes, saves, figures) + _end(workspace)


def _kill_one(
    said: Path, attempt: int, chance: random.Random, process: Any, nodes: int, workspace: Workspace,
    figures: Counter[str], longest_s: float,
) -> None:  # fmt: skip
    rank, after = chance.randrange(nodes), chance.uniform(0, longest_s)
    with_agent = chance.random() < 0.3
    began, deadline = said / f"began-{attempt}-{rank}", time.monotonic() + _LIMIT_S
    while not began.exists():
        if process.poll() is not None:
            return  # It ended before this attempt was needed.
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {rank} did not begin attempt {attempt}")
        time.sleep(0.01)
    victim = int(json.loads(began.read_text())["pid"])
    time.sleep(after)
    agents = workspace.agents() if with_agent else []
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
        figures["ranks killed"] += 1
        figures["of them control tasks"] += rank == 0
        for agent in chance.sample(agents, min(1, len(agents))):
            os.kill(agent, signal.SIGKILL)
            figures["agents or uploaders killed"] += 1


def _beginnings(said: Path, nodes: int, saves: int, figures: Counter[str]) -> list[str]:
    wrong = []
    attempts: dict[int, dict[int, dict[str, Any]]] = {}
    for path in said.glob("began-*"):
        _, attempt, rank = path.name.split("-")
        attempts.setdefault(int(attempt), {})[int(rank)] = json.loads(path.read_text())
    for attempt, ranks in attempts.items():
        figures["retries" if attempt else "first attempts"] += 1
        if len({entry["key"] for entry in ranks.values()}) != 1:
            wrong.append(f"attempt {attempt} began with different checkpoints: {ranks}")
        figures["retries that resumed"] += bool(attempt) and all(entry["count"] for entry in ranks.values())
    if not any(len(ranks) == nodes for ranks in attempts.values()):
        wrong.append(f"no attempt began on all ranks: {attempts}")
    return wrong


def _end(workspace: Workspace) -> list[str]:
    """The agents of those who were killed end by themselves."""
    deadline = time.monotonic() + 60
    while workspace.agents() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = workspace.agents()
    workspace.kill_leftovers()
    return [f"agents go on: {left}"] if left else []

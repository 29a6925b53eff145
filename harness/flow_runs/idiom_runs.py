"""Runs the flows of ``harness/idioms`` in two environments: metaflow-checkpoint's, and ours."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.flow_runs.metaflow_env import FlowRun, Workspace

IDIOMS = Path(__file__).resolve().parents[1] / "idioms"

#: Two sides may share a workspace.
_NUMBERS = itertools.count()

#: What was noted down, in order: what → values.
Seen = dict[str, list[Any]]


@dataclass
class Side:
    """One environment, with a datastore of its own.

    Parameters
    ----------
    python : str
        Its interpreter.
    workspace : Workspace
        Its datastore, home and working directory.
    """

    python: str
    workspace: Workspace

    def _environment(self, extra: Mapping[str, str] | None) -> tuple[Path, dict[str, str]]:
        notes = self.workspace.root / f"seen-{next(_NUMBERS)}.jsonl"
        return notes, {**(extra or {}), "SEEN": str(notes), "PYTHONPATH": str(IDIOMS)}

    def run(
        self, flow: str, *arguments: str, env: Mapping[str, str] | None = None, succeeds: bool = True, **options: Any
    ) -> tuple[Seen, FlowRun]:
        """Run a flow to its end; what it noted down, and its run."""
        notes, environment = self._environment(env)
        run = self.workspace.run_flow(
            IDIOMS / f"{flow}.py", *arguments, python=self.python, env=environment, succeeds=succeeds, **options
        )
        return _read(notes), run

    def script(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Seen:
        """Run a script, as somebody would outside of flows; what it noted down."""
        notes, environment = self._environment(env)
        command = [self.python, str(IDIOMS / f"{name}.py"), *arguments]
        self.workspace.run_command(command, python=self.python, env=environment)
        return _read(notes)


@dataclass
class Sides:
    """The two that are compared."""

    theirs: Side
    ours: Side

    @classmethod
    def of(cls, peer_python: str, theirs: Workspace, ours: Workspace) -> Sides:
        return cls(Side(peer_python, theirs), Side(sys.executable, ours))

    def run(self, flow: str, *arguments: str, **options: Any) -> tuple[Seen, Seen]:
        """Run a flow in both; what each noted down."""
        return self.theirs.run(flow, *arguments, **options)[0], self.ours.run(flow, *arguments, **options)[0]

    def script(self, name: str, *arguments: str) -> tuple[Seen, Seen]:
        return self.theirs.script(name, *arguments), self.ours.script(name, *arguments)


def _read(notes: Path) -> Seen:
    seen: Seen = {}
    for line in notes.read_text().splitlines() if notes.exists() else []:
        note = json.loads(line)
        seen.setdefault(note["what"], []).append(note["value"])
    return seen


#: Of ``Different``: there is no such note.
ABSENT = "absent"

#: What is noted down differently: what → (theirs, ours).
Different = dict[str, tuple[Any, Any]]


def assert_same_but(seen: tuple[Seen, Seen], different: Different | None = None) -> None:
    """Both noted down the same, except for ``different``.

    What differs must be exactly that: a difference that went away has to leave docs/compatibility.md as well.
    """
    found = {}
    theirs, ours = ({what: _only(notes) for what, notes in side.items()} for side in seen)
    for what in {*theirs, *ours}:
        pair = theirs.get(what, ABSENT), ours.get(what, ABSENT)
        if pair[0] != pair[1]:
            found[what] = pair
    assert found == (different or {})


def _only(notes: list[Any]) -> Any:
    return notes[0] if len(notes) == 1 else notes

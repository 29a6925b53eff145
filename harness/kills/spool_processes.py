"""Agent and uploader of a spool as processes, found without asking them: asking would start an agent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import async_ckpt
from harness.tasks.task import is_alive

TASK, AGENT, UPLOADER = "task", "agent", "uploader"


def crash_points() -> list[str]:
    """All named points in the package, but those of saving states (``state_kills``)."""
    package = Path(async_ckpt.__file__).parent
    lines = (line for path in package.rglob("*.py") for line in path.read_text().splitlines())
    found = {line.split('crash_point("')[1].split('"')[0] for line in lines if 'crash_point("' in line}
    points = sorted(point for point in found if not point.startswith("state:"))
    assert points, f"no crash points in {package}"
    return points


def who_dies_at(point: str) -> str:
    """Which process comes by a point."""
    return AGENT if point.startswith("agent:") else UPLOADER


def agent_of(spool: Path) -> int | None:
    """The process of a spool's agent; None where none lives that anybody could find."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((spool / "agent.pid").read_text())
        if is_alive(pid) and os.fsencode(spool) in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def uploader_of(spool: Path) -> int | None:
    """The process of a spool's uploader; None where there is none."""
    agent = agent_of(spool)
    with contextlib.suppress(OSError, ValueError):
        for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
            if is_alive(pid) and b"\0uploader\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None

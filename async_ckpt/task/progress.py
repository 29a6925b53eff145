"""How far something has come, in lines for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..config import PROGRESS_GROWTH, PROGRESS_MOST, Config
from ..system.clock import Clock

log = logging.getLogger(__name__)


class ProgressLines:
    """Lines for whoever waits: the first comes after ``progress_s`` seconds. Each further pause is ``PROGRESS_GROWTH``
    times as long as the one before, until it is ``PROGRESS_MOST`` times ``progress_s``.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._clock = clock
        self._pause_s, self._most_s = config.progress_s, PROGRESS_MOST * config.progress_s
        self._next = self._clock.monotonic() + self._pause_s

    @property
    def due_in_s(self) -> float:
        """Seconds until the next line is due; 0 if it is due now. Whoever waits in pieces waits no longer than that."""
        return max(self._next - self._clock.monotonic(), 0.0)

    def say(self, line: str) -> None:
        """Say how it stands, if it is time to."""
        if self._clock.monotonic() >= self._next:
            self._pause_s = min(PROGRESS_GROWTH * self._pause_s, self._most_s)
            self._next = self._clock.monotonic() + self._pause_s
            log.info(line)


def flush_line(answer: Mapping[str, Any] | None, trouble: str = "") -> str:
    """How a flush stands: what the agent has answered, or why it has not."""
    if answer is None:
        return f"waiting for the agent, which is tried again and again: {trouble or 'it has not answered yet'}"
    why = str(answer.get("why") or "")
    return progress_line(answer) + (f"; {why}" if why else "")


def progress_line(answer: Mapping[str, Any]) -> str:
    """``left: 3 checkpoints, 1.2 GiB, 310 MB/s, 4 s``."""
    rate, left = float(answer["bytes_per_s"]), int(answer["pending_bytes"])
    count = answer["pending"]
    if not left:
        return f"left: {count} checkpoint{'s' if count != 1 else ''} to commit"
    line = f"left: {count} checkpoint{'s' if count != 1 else ''}, {format_bytes(left)}"
    return line + (f", {rate / 1e6:.0f} MB/s, {left / rate:.0f} s" if rate > 0 else ", waiting for the store")


def format_seconds(seconds: float) -> str:
    """``0.3 ms``, ``12 ms``, ``3.4 s``, ``250 s``, ``12 min`` or ``7.5 h``."""
    if seconds < 0.00995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_bytes(count: float) -> str:
    """``1.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""``agent.log``: what the agent and its children print, for people."""

from __future__ import annotations

import contextlib
import os

#: Longest line of a log that is quoted, in bytes.
_LINE_BYTES = 400


def writable_log(path: str) -> str:
    """Where an agent and its children may write their lines: its log, or nowhere, as that cannot be opened now."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError:
        return os.devnull
    return path


def last_line(path: str) -> str:
    """What stands last in a log; empty where there is nothing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _LINE_BYTES, 0))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""

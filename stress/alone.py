"""One case of a matrix in a process of its own: what it leaves behind, or dies of, is no other case's trouble."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run_alone(module: str, seed: int, limit_s: float) -> tuple[dict[str, Any] | None, str]:
    """What ``python -m <module> --one <seed>`` prints last, as JSON; or None, and why there is nothing.

    Parameters
    ----------
    limit_s : float
        It is ended after so many seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, "--one", str(seed)], capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        return None, f"no outcome: {error!s:.200} {error.stderr or ''!s:.2000}"
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        return None, f"no outcome: {error!s:.200} {done.stderr:.2000}"
    return found, ""

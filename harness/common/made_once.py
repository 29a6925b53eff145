"""What one of the processes that pytest-xdist runs makes for all of them."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What ``make`` returns, which is called once in a run, with an empty directory that stays until the run's end.

    The others wait for it. What it returns must be picklable, and need no server or process of the one that made it.
    """
    base = factory.getbasetemp()
    # Each process has a directory of its own below the run's.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = place.with_suffix(".made")
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)  # Of one that failed; who asks next tries again.
            place.mkdir()
            done.write_bytes(pickle.dumps(make(place)))
        found: T = pickle.loads(done.read_bytes())
    return found

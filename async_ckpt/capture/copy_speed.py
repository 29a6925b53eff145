"""How fast this disk copies files, and so how much can be copied away while the kernel holds up a writer."""

from __future__ import annotations

import contextlib
import json
import os
import threading

from ..system.files import write_atomically
from ..system.memory import of_machine
from .lease import BREAK_TIME_S

#: How fast a disk is taken to be before anything was copied on it, in bytes per second: slow.
_ASSUMED = 100e6

#: A copy that is smaller (bytes) and quicker (seconds) than this says nothing of the disk: it only went into memory.
_MIN_BYTES, _MIN_S = 256 << 20, 1.0

#: A disk that has copied some amount at its rate is trusted to copy so many times as much at that rate.
_TRUST = 4

#: How much the newest copy counts in the rate.
_NEWEST = 0.5

#: Only this share of the time for which the kernel holds up a writer is planned with: a disk may become slower.
_PLANNED = 0.6


class CopySpeed:
    """What was seen of the disk; any thread may ask and tell.

    Parameters
    ----------
    path : str, optional
        A file that the savers and agents of this disk share, and those to come. Whoever tells last is believed.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read_ns = 0
        self._rate, self._largest = 0.0, 0

    def add(self, count: int, seconds: float) -> None:
        """So many bytes were copied in that time."""
        if seconds <= 0 or (count < _MIN_BYTES and seconds < _MIN_S):
            return
        with self._lock:
            self._look()
            rate = count / seconds
            self._rate = _NEWEST * rate + (1 - _NEWEST) * self._rate if self._rate else rate
            self._largest = max(self._largest, count)
            if self._path:
                # A hint: on a full disk it is learned again.
                with contextlib.suppress(OSError):
                    write_atomically(self._path, json.dumps([self._rate, self._largest]).encode())

    def _look(self) -> None:
        # Not there yet, as a rule; and whatever else is wrong with it, all is learned anew.
        with contextlib.suppress(OSError, ValueError, TypeError):
            status = os.stat(self._path) if self._path else None
            if status is not None and status.st_mtime_ns != self._read_ns:
                with open(self._path, encoding="ascii") as file:
                    rate, largest = json.load(file)
                self._rate, self._largest, self._read_ns = float(rate), int(largest), status.st_mtime_ns

    @property
    def bytes_per_s(self) -> float:
        """As seen lately; 0: not yet."""
        with self._lock:
            self._look()
            return self._rate

    def possible(self, seconds: float) -> int:
        """How many bytes can surely be copied in so many seconds, as far as is known."""
        with self._lock:
            self._look()
            if not self._rate:
                return int(_ASSUMED * seconds)
            seen = max(self._trusted(), int(min(self._rate, _ASSUMED) * seconds))
            return min(int(self._rate * seconds), seen)

    def _trusted(self) -> int:
        """A copy that went into memory says nothing of one that does not fit there."""
        absorbed = _absorbed_bytes()
        return min(_TRUST * self._largest, absorbed) if self._largest < absorbed else _TRUST * self._largest

    @property
    def safe_bytes(self) -> int:
        """How much can be rewritten in place at one time, right after it was saved, and is copied away before the
        kernel lets the writers in.
        """
        return self.possible(BREAK_TIME_S * (_PLANNED if self.bytes_per_s else 1.0))


def _absorbed_bytes() -> int:
    """How much is written at the speed of memory before the kernel has writers wait for the disk, about."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/sys/vm/dirty_ratio", encoding="ascii") as file:
            share = int(file.read()) / 100
        if share and (available := of_machine()):
            return int(available * share / 2)
    return 0  # Unknown, or set in bytes: then each copy is taken for one that reached the disk.

"""Folders of snapshots on other file systems, which may be gone: a network disk, a FUSE mount whose server hangs.

Whoever looks into such a one may never come back. So an agent that begins, perhaps in the place of one that did not
come back, has each looked into by a thread that may be left behind; what does not answer is left alone until it does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable


class Reach:
    """Which folders answer.

    Parameters
    ----------
    folders : iterable of str
        All that there are.
    limit_s : float
        How long is waited for the slowest, in seconds.
    """

    def __init__(self, folders: Iterable[str], limit_s: float) -> None:
        self._threads: dict[str, threading.Thread] = {}
        for folder in folders:
            thread = threading.Thread(target=_look_into, args=(folder,), name="async_ckpt-reach", daemon=True)
            with contextlib.suppress(RuntimeError):  # No more threads: then nobody looks.
                thread.start()
                self._threads[folder] = thread
        deadline = time.monotonic() + limit_s
        for thread in self._threads.values():
            thread.join(max(deadline - time.monotonic(), 0.0))
        self.came_back()

    def came_back(self) -> set[str]:
        """Folders that answer now, and did not before."""
        back = {folder for folder, thread in self._threads.items() if not thread.is_alive()}
        for folder in back:
            del self._threads[folder]
        return back

    @property
    def silent(self) -> frozenset[str]:
        """Those that have not answered."""
        return frozenset(self._threads)


def _look_into(folder: str) -> None:
    with contextlib.suppress(OSError):  # Any answer is one.
        os.listdir(folder)

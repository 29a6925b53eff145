"""Wake-ups from the kernel, through watchdog.

An event says that there is something to look at; what is there is found by looking. So an event that is lost costs
time, never a checkpoint. Only renames say more: a trainer that writes under another name and renames has finished.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import THREADS_END_S
from ..errors import os_reason

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger(__package__)

#: So many renames are remembered between two looks. What else was renamed counts as finished when it is quiet.
_MAX_RENAMES = 10_000

#: How many folders are watched for events. What changes in others is found by looking.
_MAX_FOLDERS = 64

_LIMITS = {
    errno.ENOSPC: "the kernel's limit of watches is reached: raise it with sysctl fs.inotify.max_user_watches",
    errno.EMFILE: "the kernel's limit of inotify instances, or of open files, is reached: raise it with "
    "sysctl fs.inotify.max_user_instances, or ulimit -n",
}


class Events:
    """The renames in some folders since they were last taken.

    Folders are watched one by one, not with all that is below them. Otherwise watchdog's thread would die if a folder
    vanished while it is added, and other programs need the kernel's watches as well.

    Parameters
    ----------
    wake : callable
        Called from another thread whenever there is something to look at.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._renames: dict[str, str] = {}
        self._observer: BaseObserver | None = None
        self._followed: dict[str, tuple[tuple[int, int], ObservedWatch]] = {}
        self._has_failed = False

    def follow(self, folder: str) -> None:
        """Make sure that events come from the directory that is at ``folder`` now, if there is one."""
        if self._has_failed:
            return
        try:
            status = os.stat(folder)
            now = (status.st_dev, status.st_ino)
            before, watch = self._followed.get(folder, (None, None))
            if now == before or (before is None and len(self._followed) >= _MAX_FOLDERS):
                return
            if watch is not None and self._observer is not None:
                del self._followed[folder]
                self._observer.unschedule(watch)
            self._followed[folder] = (now, self._schedule(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ImportError) as error:
            self._has_failed = True  # It would fail again and again.
            self.end()
            reason = _LIMITS.get(getattr(error, "errno", None) or 0)
            reason = reason or (os_reason(error) if isinstance(error, OSError) else str(error))
            log.warning(f"no events from {folder}: it is looked at again and again instead. Reason: {reason}")

    def _schedule(self, folder: str) -> ObservedWatch:
        # Imported here: only a task that watches pays for it.
        from watchdog.events import (
            DirCreatedEvent,
            DirMovedEvent,
            FileClosedEvent,
            FileCreatedEvent,
            FileMovedEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers.inotify import InotifyObserver

        events = self

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                events._on_event(event.event_type, os.fsdecode(event.src_path), os.fsdecode(event.dest_path))

        if self._observer is None:
            # All events, as a rename from outside of the folder counts as well.
            self._observer = InotifyObserver(generate_full_events=True)
            self._observer.start()
        # No events of writes: a trainer makes thousands a second.
        kinds = [DirCreatedEvent, DirMovedEvent, FileClosedEvent, FileCreatedEvent, FileMovedEvent]
        return self._observer.schedule(Handler(), folder, event_filter=kinds)

    def _on_event(self, kind: str, source: str, target: str) -> None:
        if kind == "moved" and target:
            with self._lock:
                if len(self._renames) < _MAX_RENAMES:
                    self._renames[target] = source
        self._wake()

    def take_renames(self) -> dict[str, str]:
        """New path → old path (empty: outside of the directory), of all renames since the last call."""
        with self._lock:
            taken, self._renames = self._renames, {}
        return taken

    def end(self) -> None:
        """No more events."""
        observer, self._observer = self._observer, None
        self._followed.clear()
        if observer is not None:
            observer.stop()
            observer.join(THREADS_END_S)

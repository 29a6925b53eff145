"""Keeps a spool whole while its agent lives, whatever cleans the directory it is in.

systemd-tmpfiles, tmpreaper, a cron job with ``find -mtime +10 -delete``, or a person may remove what looks old, even
while a run of weeks still needs it. So

- ``flock`` is held on the spool's directory and its annexes: systemd-tmpfiles leaves alone what is below such a one;
- times are set anew now and then, for cleaners that go by age alone;
- what was removed all the same is made again, from memory: names, counters (never below what was used), records, and
  the journal, which can still be read through its descriptor.

What cannot be made again, the data of snapshots, is for the agent to report.

The lock on the directory also tells whoever starts an agent that there is one already, when ``agent.lock`` is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable

from ..config import Config
from ..errors import SpoolError
from ..system import forks
from ..system.files import try_lock, write_atomically
from .journal import Journal
from .records import Admitted
from .spool import Spool

#: Files that are read into memory as they change, and written again where they are missing.
_REMEMBERED = re.compile(r"spool\.json|annexes|agent\.pid|(start|versions|collective|launches)\.[0-9.]+")
#: Those of them that hold a number, which only grows.
_COUNTERS = ("versions.", "collective.")


class Upkeep:
    """Looks after the files of one spool; for its agent.

    Parameters
    ----------
    spool : Spool
        Its agent lives as long as this object is used.
    journal : Journal
        The one that the agent writes.
    """

    def __init__(self, spool: Spool, config: Config, journal: Journal) -> None:
        spool.may_make = True
        self._spool, self._journal, self._touch_s = spool, journal, config.touch_s
        self._next_touch = time.monotonic() + config.touch_s
        #: Content of small files, by name, and what they were when it was read: (inode, mtime in nanoseconds).
        self._content: dict[str, bytes] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        #: Directories that are locked: path → descriptor, inode.
        self._locked: dict[str, tuple[int, int]] = {}
        self._lock_file = -1

    @property
    def holds(self) -> bool:
        """Whether the spool was this agent's at the last look, and nobody else's."""
        return self._spool.directory in self._locked

    def stop(self) -> None:
        """Let go of the locks."""
        for fd, _ in self._locked.values():
            forks.close_lock(fd)
        self._locked.clear()
        if self._lock_file >= 0:
            forks.close_lock(self._lock_file)
            self._lock_file = -1

    def look(self, items: Iterable[Admitted]) -> list[str]:
        """See that everything is there, and make again what is missing; a few calls to the kernel where nothing is.

        Parameters
        ----------
        items : iterable of Admitted
            All that must have a record.

        Returns
        -------
        list of str
            Names of what was missing. What cannot be made now is tried again by the next look.

        Raises
        ------
        OSError, SpoolError
            It cannot be made.
        """
        spool = self._spool
        missing: list[str] = []
        if not os.path.isdir(spool.directory):
            missing.append("the spool's directory")
            spool.mend()
        if not self._hold(spool.directory, fcntl.LOCK_EX):
            return []  # Something cleans it in this moment; or it was made again, and has another agent.
        for annex in spool.snapshots.annexes():
            self._hold(annex, fcntl.LOCK_SH)
        there = set(os.listdir(spool.directory))
        missing += [name for name in ("data", "staging", "ready", "pidns") if name not in there]
        if missing:
            spool.mend()
        missing += self._restore_files(there)
        if self._journal.restore():
            missing.append("journal")
        if "agent.lock" not in there:
            missing.append("agent.lock")
            self._lock_again()
        ready = set(spool.records.ids())
        for item in items:
            if item.id not in ready:
                spool.records.write(item)
                missing.append(f"ready/{item.id}.json")
        # Last of all, for whoever finds this file counts on the rest.
        if "spool.json" in self._content and "spool.json" not in there:
            missing.append("spool.json")
            write_atomically(spool.path("spool.json"), self._content["spool.json"])
        if time.monotonic() >= self._next_touch:
            self._next_touch = time.monotonic() + self._touch_s
            self._touch()
        return missing

    def _hold(self, folder: str, how: int) -> bool:
        """Whether the lock on a directory is held; also where there can be none."""
        fd, inode = self._locked.get(folder, (-1, 0))
        try:
            if os.stat(folder).st_ino == inode:
                return True
            if fd >= 0:
                del self._locked[folder]
                forks.close_lock(fd)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # It is gone; whoever needs it makes it.
            return False
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:  # A file system without such locks. The descriptor keeps the inode's number from another one.
            pass
        forks.keep_lock_from_children(fd)
        self._locked[folder] = fd, os.fstat(fd).st_ino
        return True

    def _restore_files(self, there: set[str]) -> list[str]:
        spool, missing = self._spool, []
        for name in filter(_REMEMBERED.fullmatch, sorted(there)):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(spool.path(name))
                if self._seen.get(name) != (status.st_ino, status.st_mtime_ns):
                    self._remember(name, (status.st_ino, status.st_mtime_ns))
        for name in self._content.keys() - there - {"spool.json"}:
            missing.append(name)
            if name.startswith(_COUNTERS):
                spool.versions.count_from(name, _number(self._content[name]))
            else:
                write_atomically(spool.path(name), self._content[name])
        return missing

    def _remember(self, name: str, seen: tuple[int, int]) -> None:
        with open(self._spool.path(name), "rb") as file:
            content = file.read()
        if name.startswith(_COUNTERS):
            least = _number(self._content.get(name, b""))
            if _number(content) < least:  # Its file was removed, and begun anew by a saver.
                self._spool.versions.count_from(name, least)
                return
        self._content[name], self._seen[name] = content, seen

    def _lock_again(self) -> None:
        """A new ``agent.lock``, locked; the one that was removed stays locked as well."""
        fd = os.open(self._spool.path("agent.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(fd):  # Somebody is about to start an agent, and finds the directory locked.
            os.close(fd)
            return
        if self._lock_file >= 0:
            forks.close_lock(self._lock_file)
        forks.keep_lock_from_children(fd)
        self._lock_file = fd

    def _touch(self) -> None:
        """Set the times of what is ours alone: not of snapshots, whose files may be the trainer's as well, nor of
        ``work``, whose time says when the attempt began.
        """
        spool = self._spool
        found = [spool.path(name) for name in os.listdir(spool.directory) if name != "work"]
        found += [spool.path("ready", f"{identity}.json") for identity in spool.records.ids()]
        for folder in (spool.path("data"), *spool.snapshots.annexes()):
            with contextlib.suppress(OSError):
                packs = [name for name in os.listdir(folder) if name.endswith(".pack")]
                found += [folder, *(os.path.join(folder, name) for name in packs)]
        for folder in ("work", "savers"):
            with contextlib.suppress(OSError):
                found += [spool.path(folder, name) for name in os.listdir(spool.path(folder))]
        for path in [os.path.dirname(spool.directory), *found]:
            with contextlib.suppress(OSError):  # It has gone in this moment.
                os.utime(path, follow_symlinks=False)


def _number(content: bytes) -> int:
    """What a counter says; 0 where it says nothing that makes sense, which its next user will meet."""
    return int(content) if content.isdigit() else 0


def is_held(directory: str) -> bool:
    """Whether an agent holds the lock on a spool's directory (or something that cleans it, for a moment)."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SpoolError(f"The spool cannot be opened: {error.strerror}", where=directory) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # A file system without such locks.
        return False
    finally:
        os.close(fd)
    return False

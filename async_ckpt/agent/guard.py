"""Answers the kernel when somebody wants to write to a hard-linked file; see ``capture/lease.py``.

The guard has threads of its own, because a trainer is held up in ``open()`` until the answer comes. The kernel's signal
is blocked in the whole process and fetched with ``sigtimedwait``. The guard then asks each lease whether somebody waits
for it (a microsecond each), so a signal that was lost does no harm. Several threads copy, so that each writer waits for
its own file only.

Two kinds of files are copied away before anybody wants to write to them: files that were rewritten in place before, as
they will be at every save (``capture/habits.py``), and files that this disk could not copy in the time for which the
kernel holds up a writer (``capture/copy_speed.py``). If a writer comes meanwhile, only the rest is left to be copied.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

from ..capture import lease
from ..capture.copy_speed import CopySpeed
from ..capture.habits import Habits
from ..capture.private import PrivateCopy, link_private, lost, rewritten
from ..config import LAST_COPIES_S, PACE_HELD_FILE_BYTES, THREADS_END_S, Config
from ..errors import SnapshotError
from ..spool.journal import order
from ..system.priority import set_disk_priority
from .backlog import is_short_of_disk

#: How many files are copied at a time for writers that wait.
_COPIERS = 4

#: Files are copied in pieces of this many bytes. Between two pieces the guard sees whether a writer waits for the file
#: by now, or nobody needs the copy any more.
_PIECE_BYTES = 8 << 20

#: How many bytes at the end of a file are looked at (see ``_may_be_cut``).
_TAIL_BYTES = 512

Key = tuple[str, str]


@dataclass
class GuardedFile:
    """A leased file that the agent answers for: its descriptor, the link's path, size (bytes) and mtime (nanoseconds)
    as captured, the trainer's own path (``original``), and a directory for temporary files (``folder``).
    """

    fd: int
    path: str
    size: int
    mtime_ns: int
    original: str
    folder: str = ""
    #: Somebody copies it, or is about to.
    busy: bool = False
    #: The store has it: whoever copies it may stop.
    needless: bool = False
    #: How many seconds it took to copy it; 0: nobody did, or the file system has cloned it.
    copied_s: float = 0.0
    #: Monotonic time when the lease was last seen to stand; 0: never by us (another agent may have lost it before).
    stood: float = 0.0
    #: Device and number of the inode.
    inode: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        status = os.fstat(self.fd)
        self.inode = status.st_dev, status.st_ino

    @property
    def is_sure(self) -> bool:
        """Whether nobody can have written to it yet: the lease stands, or has not been broken for so long that the
        kernel would have let the writer in.
        """
        return time.monotonic() < self.stood + lease.BREAK_TIME_S / 2 or not lease.is_breaking(self.fd)

    def drop(self) -> None:
        """Let whoever waits for it go on."""
        lease.release(self.fd)
        os.close(self.fd)


class Guard:
    """Holds the leases of all snapshots.

    Parameters
    ----------
    on_private : callable
        ``(id, path, why)`` from a thread of the guard's after a file was made private and its lease let go; ``why`` is
        not empty if it could not be (the snapshot is lost then).
    on_notice : callable
        Gets what the user should know, from such a thread.
    on_wait : callable
        Called from such a thread when ``is_waited_for`` has changed.
    """

    def __init__(
        self,
        on_private: Callable[[str, str, str], None],
        on_notice: Callable[[str], None],
        on_wait: Callable[[], None],
        habits: Habits,
        copy_speed: CopySpeed,
        config: Config,
    ) -> None:
        self._on_private, self._on_notice, self._on_wait, self._config = on_private, on_notice, on_wait, config
        self._habits, self.copy_speed = habits, copy_speed
        self._limit_s = min(config.copy_away_s, lease.BREAK_TIME_S / 2)
        self._lock = threading.Lock()
        self._copy_ended = threading.Condition(self._lock)
        self._held: dict[Key, GuardedFile] = {}
        self._stopping = False
        self._said: set[str] = set()
        #: Inodes of large files that are copied while a writer waits, or as one is expected, and since when.
        self._waited: dict[tuple[int, int], float] = {}
        self._ahead: SimpleQueue[str | None] = SimpleQueue()
        self._waited_for: SimpleQueue[list[Key] | None] = SimpleQueue()
        self._threads = self._start()

    def _start(self) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=target, name=f"async_ckpt-guard-{target.__name__.strip('_')}", daemon=True)
            for target in (self._listen, self._copy_ahead, *[self._copy_what_is_waited_for] * _COPIERS)
        ]
        for thread in threads:
            thread.start()
        return threads

    def add(self, identity: str, path: str, held: GuardedFile) -> None:
        """Take over a lease; its descriptor belongs to the guard from now on."""
        with self._lock:
            previous = self._held.get((identity, path))
            if previous is not None:
                if lease.is_same(previous.fd, held.fd):  # Sent again over a new connection: one descriptor is enough.
                    os.close(held.fd)
                    return
                # A load has linked the file and took a lease of its own. One is enough, as a writer waits for all of
                # them. The new one is kept, because its process lives, unless the file is being copied already.
                if previous.busy:
                    held.drop()
                    return
                held.stood = previous.stood
                previous.drop()
            self._held[identity, path] = held
            self._habits.saw(held.original, held.inode)
            lease.answer_for(held.fd)
            # This is asked under the lock: a moment later another thread may have closed the descriptor.
            if lease.is_breaking(held.fd):
                self._wake()
            else:
                held.stood = time.monotonic()

    def look_ahead(self, identity: str) -> None:
        """Leases of a checkpoint were added: some of its files may have to be copied away at once."""
        self._ahead.put(identity)

    def let_go(self, identity: str, paths: Iterable[str] | None = None) -> list[str]:
        """Release leases without a copy: the bytes are in the store. Returns the paths released; those that are being
        copied follow in a moment.
        """
        released = []
        with self._lock:
            keys = (
                [key for key in self._held if key[0] == identity] if paths is None else [(identity, p) for p in paths]
            )
            for key in keys:
                held = self._held.get(key)
                if held is not None and held.busy:
                    held.needless = True
                elif held is not None:
                    del self._held[key]
                    held.drop()
                    released.append(key[1])
        return released

    def stands(self, identity: str, path: str) -> bool:
        """Whether the lease of a file has held until now: nobody can have written to it, whatever its times are."""
        with self._lock:
            held = self._held.get((identity, path))
            return held is not None and not held.busy and not lease.is_breaking(held.fd) and not _may_be_cut(held)

    def count(self) -> int:
        return len(self._held)

    @property
    def is_waited_for(self) -> bool:
        """Whether a large file is copied for which a writer waits, or will: for as long as the kernel holds one up."""
        return any(time.monotonic() - began < lease.BREAK_TIME_S for began in list(self._waited.values()))

    def make_all_private(self) -> None:
        """Copy all files away: the agent ends, and nobody guards them from now on."""
        with self._lock:
            groups = self._groups([key for key, held in self._held.items() if not held.busy])
        for group in groups:
            self._copy_away(group)
        with self._lock:
            self._copy_ended.wait_for(lambda: not any(held.busy for held in self._held.values()), LAST_COPIES_S)

    def stop(self) -> None:
        self._stopping = True
        self._ahead.put(None)
        for _ in range(_COPIERS):
            self._waited_for.put(None)
        self._wake()
        deadline = time.monotonic() + THREADS_END_S
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0))

    def _wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getpid(), lease.LEASE_SIGNAL)

    def _groups(self, keys: list[Key]) -> list[list[Key]]:
        """Mark files as busy, and group them by inode: one file may be in several snapshots, and is copied once."""
        groups: dict[tuple[int, int], list[Key]] = {}
        for key in keys:
            self._held[key].busy = True
            groups.setdefault(self._held[key].inode, []).append(key)
        return list(groups.values())

    # -- for writers that wait -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._stopping:
            # There is a limit because the kernel drops signals when their queue is full.
            signal.sigtimedwait([lease.LEASE_SIGNAL], 1.0)
            self._see_who_waits()

    def _see_who_waits(self) -> None:
        with self._lock:
            now, todo = time.monotonic(), []
            for key, held in self._held.items():
                if held.busy:
                    continue
                if lease.is_breaking(held.fd):
                    todo.append(key)
                    self._habits.learn(held.original)
                else:
                    held.stood = now
            groups = self._groups(todo)
        for group in groups:
            self._is_waited(self._held[group[0]])
            self._waited_for.put(group)

    def _is_waited(self, held: GuardedFile) -> None:
        """A writer waits for a file, or will come as it has come before."""
        if held.size >= PACE_HELD_FILE_BYTES:
            self._waited.setdefault(held.inode, time.monotonic())
            self._on_wait()

    def _is_over(self, held: GuardedFile) -> None:
        """A file is copied, or nobody needs the copy any more."""
        if self._waited.pop(held.inode, None) is not None:
            self._on_wait()

    def _copy_what_is_waited_for(self) -> None:
        while (group := self._waited_for.get()) is not None:
            self._copy_away(group)

    # -- before anybody comes --------------------------------------------------------------------------------------

    def _copy_ahead(self) -> None:
        while (identity := self._ahead.get()) is not None:
            while group := self._next_ahead(identity):
                if not self._copy_away(group, ahead=True):
                    break

    def _next_ahead(self, identity: str) -> list[Key]:
        """What to copy next of a checkpoint, or of the other ranks' parts of it: all its files may be rewritten at the
        same time. Files are left out that have no name but ours, and those that the trainer makes anew each time.
        """
        number = order(identity)
        with self._lock:
            inodes: dict[tuple[int, int], list[Key]] = {}
            for key, held in self._held.items():
                if not held.busy:
                    inodes.setdefault(held.inode, []).append(key)
            mine = {
                inode: keys
                for inode, keys in inodes.items()
                if any(order(key[0]) == number for key in keys)
                and os.fstat(self._held[keys[0]].fd).st_nlink > len({self._held[key].path for key in keys})
                and not self._habits.is_new_each_time(self._held[keys[0]].original)
            }
            if not mine:
                return []
            sizes = {inode: self._held[keys[0]].size for inode, keys in mine.items()}
            total = sum(sizes.values())
            known = [inode for inode, keys in mine.items() if self._habits.is_rewritten(self._held[keys[0]].original)]
            if known:
                chosen = max(known, key=lambda inode: sizes[inode])
            elif total > self.copy_speed.possible(self._limit_s):
                chosen = max(sizes, key=lambda inode: sizes[inode])
            else:
                return []
            self._groups(mine[chosen])
            if known:
                self._is_waited(self._held[mine[chosen][0]])
        if self.copy_speed.bytes_per_s and total > self.copy_speed.safe_bytes:
            self._say_once("large", self._warning(total))
        return mine[chosen]

    def _say_once(self, topic: str, line: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            self._on_notice(line)

    def _warning(self, total: int) -> str:
        rate = self.copy_speed.bytes_per_s
        return (
            f"{total / 1e9:.1f} GB of one checkpoint are links to files of the trainer. This disk copies "
            f"{rate / 1e6:.0f} MB/s, about {self.copy_speed.safe_bytes / 1e9:.1f} GB in the {lease.BREAK_TIME_S:g} s "
            "for which the kernel holds up whoever rewrites them in place; so they are copied in the background after "
            f"each save(), which takes {total / rate:.0f} s. Rewritten before that, the checkpoint may fail. Write to "
            "a new name and rename it, or put the files and the spool on one xfs or btrfs, where copies take no time"
        )

    # -- copying ---------------------------------------------------------------------------------------------------

    def _copy_away(self, group: list[Key], *, ahead: bool = False) -> bool:
        """Give several snapshots of one file a copy of their own, and release their leases.

        ``ahead``: no writer waits yet. Returns False if nothing was done, as there is no room for a copy.
        """
        helds = {key: self._held[key] for key in group}
        donor = ""
        for key, held in helds.items():
            why = ""
            if not held.needless and lease.is_of(held.fd, held.path):
                try:
                    if donor:
                        self._check(held)
                        link_private(donor, held.path)
                    elif self._copy(held, list(helds.values()), ahead=ahead):
                        donor = held.path
                    elif ahead and not held.needless:
                        self._put_back(helds)
                        self._is_over(held)
                        return False
                except (OSError, SnapshotError) as error:
                    # Otherwise a process of the task was quicker, and its copy is good.
                    if lease.is_of(held.fd, held.path):
                        why = str(lost(held.path, error))
            with self._lock:
                del self._held[key]
                self._copy_ended.notify_all()
            held.drop()
            self._on_private(*key, why)
        for held in helds.values():  # Of one inode.
            self._is_over(held)
            # Written to the disk, so not while somebody waits.
            self.copy_speed.add(held.size, held.copied_s)
        return True

    def _put_back(self, helds: dict[Key, GuardedFile]) -> None:
        """Nothing became of a copy that nobody waits for."""
        with self._lock:
            for held in helds.values():
                held.busy = False
            needless = [key for key, held in helds.items() if held.needless]
            self._copy_ended.notify_all()
        for identity, path in needless:
            if self.let_go(identity, [path]):
                self._on_private(identity, path, "")
        self._wake()  # Somebody may have come meanwhile.

    def _copy(self, held: GuardedFile, users: list[GuardedFile], *, ahead: bool) -> bool:
        """Copy one file, and put the copy into the place of its link. Returns False if nobody needs the copy, or, with
        ``ahead``, there is no room for it.

        Raises
        ------
        OSError, SnapshotError
            It could not be copied, or was written to before it was.
        """
        self._check(held)
        begun, idle = time.monotonic(), False
        copy = PrivateCopy(held.path, held.fd, held.size, held.folder)
        try:
            while copy.left or not copy.begun:
                if all(user.needless for user in users) or (ahead and self._stopping):
                    return False
                if ahead and lease.is_breaking(held.fd):
                    ahead = False
                    self._is_waited(held)
                    self._habits.learn(held.original)
                elif ahead:
                    held.stood = time.monotonic()
                    if is_short_of_disk(os.path.dirname(held.path), self._config, copy.left):
                        if held.size > self.copy_speed.possible(self._limit_s):
                            self._say_once("room", _no_room(held))
                        return False
                if ahead != idle:
                    idle = ahead
                    set_disk_priority(idle=idle)
                copy.advance(_PIECE_BYTES)
            self._check(held)
            copy.take_its_place()
            if not copy.cloned:
                held.copied_s = time.monotonic() - begun
            return True
        except OSError:
            if ahead and not lease.is_breaking(held.fd):
                return False  # The lease stands, and so does the link.
            raise
        finally:
            copy.drop()
            if idle:
                set_disk_priority(idle=False)

    def _check(self, held: GuardedFile) -> None:
        """See that a file was not written to since its capture.

        Raises
        ------
        SnapshotError
            It was, or may have been: the kernel broke the lease by force.
        """
        status = os.fstat(held.fd)
        if held.is_sure and not _may_be_cut(held):
            # Nobody wrote to it. If its time is another one, that was set without writing (touch, copystat).
            held.mtime_ns = status.st_mtime_ns
        if (status.st_size, status.st_mtime_ns) != (held.size, held.mtime_ns):
            raise rewritten(held.path)


def _may_be_cut(held: GuardedFile) -> bool:
    """Whether a file may have been truncated, and made as long as before, although its lease stands. An overlay above
    its folder and an NFS server do that without asking. Such a file ends in zeros, and has another time.
    """
    if os.fstat(held.fd).st_mtime_ns == held.mtime_ns:
        return False
    return not os.pread(held.fd, _TAIL_BYTES, max(held.size - _TAIL_BYTES, 0)).strip(b"\0")


def _no_room(held: GuardedFile) -> str:
    return (
        f"The disk has no room to copy {held.original} away before it is rewritten in place "
        f"({held.size / 1e9:.1f} GB): whoever does that may be held up for long, and the checkpoint may fail. "
        "Free some space, or write to a new name and rename it"
    )

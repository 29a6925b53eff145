"""The leases of snapshots' files: taken over from those who captured them, given back as the store has the files."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Container, Iterator

from ..capture import lease
from ..capture.habits import original_of
from ..config import Config
from ..ipc import protocol
from ..ipc.protocol import Message
from ..ipc.server import Connection, Server
from ..manifest import LINK, FileEntry
from ..spool.journal import RELEASED, Journal
from ..spool.records import Admitted
from ..spool.spool import Spool
from .guard import Guard, GuardedFile


class Leases:
    """What the agent and its clients tell each other about leases.

    Parameters
    ----------
    guarded : bool
        Whether leases are held in this process at all.
    wake : callable
        Called from the guard's threads when ``lost``, ``notices`` or ``are_waited_for`` has something new to tell.
    """

    def __init__(
        self, spool: Spool, journal: Journal, server: Server, wake: Callable[[], None], config: Config, *, guarded: bool
    ) -> None:
        self._spool, self._journal, self._server, self._wake = spool, journal, server, wake
        self._most = config.max_leases
        self._private: deque[tuple[str, str, str]] = deque()
        self._notices: deque[str] = deque()
        self._guard = (
            Guard(self._on_private, self._on_notice, wake, spool.habits(), spool.copy_speed(), config)
            if guarded
            else None
        )

    def take(self, item: Admitted | None, connection: Connection, message: Message, fds: list[int]) -> None:
        """Take over the leases that came with an ``admit``, as far as they are needed; who sent them hears which are
        not.
        """
        identity = str(message.get("id"))
        known = self._journal.of(identity)
        # Committed in an attempt that the journal has forgotten.
        gone = item is None and identity not in self._spool.records
        needless = []
        for path, fd in zip(message["guard"], fds, strict=True):
            entry = item.entries.get(path) if item is not None else None
            # In the store: an earlier agent may have let it go without a copy, and died before it said so.
            stored = gone or known.uploaded or known.state in RELEASED or path in known.files
            if stored or (entry is not None and item is not None and not lease.is_of(fd, item.file(path))):
                lease.release(fd)
                os.close(fd)
                needless.append(path)
            elif self._guard is None or entry is None or item is None:
                os.close(fd)
            else:
                self._guard.add(identity, path, _held(fd, item, entry))
        if self._guard is not None:
            self._guard.look_ahead(identity)
        if needless:
            connection.send({"push": "unguard", "id": identity, "paths": needless})

    def take_anew(self, item: Admitted, stored: Container[str]) -> list[str]:
        """An agent begins: guard the links of a checkpoint that may have lost their leases, with the last agent and
        whoever captured them. A saver that lives sends its own later, and these are let go.

        Parameters
        ----------
        stored : container of str
            Files that the store has already.

        Returns
        -------
        list of str
            Paths of links for which no lease can be had now: somebody has them open for writing, or mapped.
        """
        refused: list[str] = []
        if self._guard is None:
            return refused
        for entry in item.manifest.files:
            if entry.how == LINK and entry.path not in stored and self._guard.count() < self._most:
                with contextlib.suppress(OSError):  # It is gone, or there are no more descriptors.
                    fd = os.open(item.file(entry.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    if not entry.is_of(os.fstat(fd)):
                        os.close(fd)
                    elif not lease.take(fd):
                        os.close(fd)
                        refused.append(entry.path)
                    elif entry.is_of(os.fstat(fd)):  # Now nobody can have written to it in between.
                        self._guard.add(item.id, entry.path, _held(fd, item, entry))
                    else:
                        os.close(fd)
        self._guard.look_ahead(item.id)
        return refused

    def let_go(self, identity: str, paths: list[str] | None = None) -> None:
        """The store has these files of a checkpoint, or all, or nobody needs them any more."""
        if self._guard is not None:
            self._tell(identity, self._guard.let_go(identity, paths))

    def stands(self, identity: str, path: str) -> bool:
        """See ``Guard.stands``."""
        return self._guard is not None and self._guard.stands(identity, path)

    def facts(self) -> Message:
        """How many are held; how fast this disk copies (bytes per second; 0: not known yet), and how much a trainer can
        surely rewrite in place at one time (bytes).
        """
        if self._guard is None:
            return {"leases": 0}
        rate, safe = int(self._guard.copy_speed.bytes_per_s), self._guard.copy_speed.safe_bytes
        return {"leases": self._guard.count(), "copy_bytes_per_s": rate, "safe_rewrite_bytes": safe}

    @property
    def are_waited_for(self) -> bool:
        """Whether a large file is copied for which a writer waits, or will."""
        return self._guard is not None and self._guard.is_waited_for

    def notices(self) -> Iterator[str]:
        """What the user should know, since the last call."""
        while self._notices:
            yield self._notices.popleft()

    def lost(self) -> Iterator[tuple[str, str]]:
        """Tell the clients what has become a file of its own since the last call. Yields (id, why) of each snapshot
        for which that failed, and whose file the store does not have either.
        """
        while self._private:
            identity, path, why = self._private.popleft()
            self._tell(identity, [path])
            if why and path not in self._journal.of(identity).files:
                yield identity, why

    def stop(self) -> None:
        """The agent ends: what is left stands on its own from now on."""
        if self._guard is not None:
            self._guard.make_all_private()
            self._guard.stop()

    def _tell(self, identity: str, paths: list[str]) -> None:
        for start in range(0, len(paths), protocol.MAX_FDS):
            push = {"push": "unguard", "id": identity, "paths": paths[start : start + protocol.MAX_FDS]}
            for connection in list(self._server.connections):
                connection.send(push)

    def _on_notice(self, why: str) -> None:
        """From the guard's threads."""
        self._notices.append(why)
        self._wake()

    def _on_private(self, identity: str, path: str, why: str) -> None:
        """From the guard's thread."""
        self._private.append((identity, path, why))
        self._wake()


def _held(fd: int, item: Admitted, entry: FileEntry) -> GuardedFile:
    original, folder = original_of(item.saved_path, entry.path), os.path.dirname(item.data)
    return GuardedFile(fd, item.file(entry.path), entry.size, entry.mtime_ns, original, folder)

"""The control plane: one loop that admits, orders, journals and answers. It imports nothing heavy and never waits for
a store.

The agent holds the spool's lock (a descriptor it was given) for as long as it lives, so there is one per spool. It
works for an *owner*, the task's process; when the owner is gone (its connection ends, or its process), the agent
*drains*: it goes on until everything is committed or its deadline has passed, and exits. When all is committed it
removes the spool.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import layout
from ..config import Config
from ..crash import crash_point
from ..errors import IntegrityError, SpoolError
from ..files import parent_of, process_exists
from ..ipc import protocol
from ..ipc.protocol import Message
from ..ipc.server import Connection, Server
from ..snapshot import lease
from ..source import pack_path
from ..spool import journal
from ..spool.journal import (
    COMMITTED,
    FAILED,
    FINAL,
    SETTLED,
    SUPERSEDED,
    UPLOADED,
    UPLOADING,
    Journal,
    Progress,
    is_id,
)
from ..spool.spool import Admitted, Spool, is_torn, torn_file
from ..spool.stored import Inode
from . import handover
from .backlog import is_short_of_disk, why_full
from .deadline import LastCall
from .farewell import Farewell
from .guard import Guard, Held
from .outage import Outages
from .plane import MAX_DEATHS, DataPlane, Worker
from .queue import Job, Queue
from .remover import Remover
from .saves import Saves
from .throughput import Throughput
from .unchanged import is_settled, recognizable, unchanged

_TICK_S = 0.2
_MAX_ERRORS = 20
_YEAR_S = 365 * 24 * 3600


class Agent:
    """See the module's docstring.

    Parameters
    ----------
    spool : Spool
        Whose lock the caller holds.
    listening : socket.socket
        Bound and listening at ``agent.sock``.
    start_worker : callable
        Makes a data plane; called when there is work and there is none.
    start_saver : callable
        Makes a saver; called when a client asks for a save and there is none.
    guarded : bool
        Whether leases are held here (a process of its own) or not (a thread).
    """

    def __init__(
        self,
        spool: Spool,
        listening: socket.socket,
        start_worker: Callable[[], Worker],
        start_saver: Callable[[], Worker],
        config: Config,
        *,
        guarded: bool,
    ) -> None:
        self._spool, self._config = spool, config
        self._selector = selectors.DefaultSelector()
        self._server = Server(listening, self._selector, self._on_message, self._on_close)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: self._on_wake())
        self._guard = Guard(self._on_private) if guarded else None
        self._private: deque[tuple[str, str, str]] = deque()
        self._remover = Remover(spool, self._wake, self._remember)
        self._queue = Queue(config.max_uploads)
        self._items: dict[str, Admitted] = {}
        self._plane = DataPlane(
            self._selector, start_worker, config.reply_timeout_s, self._on_worker_message, self._on_worker_death
        )
        self._farewell = Farewell(spool.task, self._plane)
        self._saves = Saves(self._selector, start_saver, config)
        self._owners: dict[Connection, int] = {}
        self._waiting: list[tuple[Connection, Message, float]] = []
        self._unjournaled: deque[Message] = deque()
        self._throughput = Throughput()
        self._bytes_copied = 0
        #: Of checkpoints under way: which of their files a later one may find unchanged.
        self._inodes: dict[str, dict[str, Inode]] = {}
        self._errors: deque[str] = deque(maxlen=_MAX_ERRORS)
        #: What the user should know of how the store works here.
        self._notices: deque[str] = deque(maxlen=_MAX_ERRORS)
        self._outages = Outages(config.outage_s)
        self._last_call = LastCall(self._queue, self._throughput, self._plane, config, self._tell_owners)
        self._over = self._orphaned = False
        #: Shards of ranks that were started again since.
        self._outdated: set[str] = set()
        #: A process, and which parent it must have.
        self._lead: tuple[int, int] | None = None
        self._attempt = spool.task.attempt
        self._gone: str | None = None
        self._drain_until = time.monotonic() + config.drain_timeout_s
        self._grace_until = time.monotonic() + config.reply_timeout_s
        self._next_scan = 0.0
        self._journal = Journal(spool.path("journal"), spool.task.attempt, keep=set(spool.ready_ids()))
        self._recover()

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until there is nothing left to do for anybody."""
        try:
            while not (self._is_over() and self._leave()):
                for key, mask in self._selector.select(_TICK_S):
                    key.data(mask)
                self._tick()
        finally:
            self._close()

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._owners or now < self._grace_until:
            return False
        idle = self._remover.idle and not self._saves.count and not self._farewell.is_due
        done = not self._queue.pending and idle and not self._spool_has_news()
        return done or now >= self._drain_until

    def _leave(self) -> bool:
        """Take the spool away if nothing in it is needed any more. False if something was admitted in this moment.

        What failed is told at the end of a step: an agent whose task was killed leaves it to the next attempt's.
        """
        if self._queue.pending or ((self._spool.ready_ids() or self._queue.failed()) and not self._over):
            return True
        needless = FINAL if self._over else SETTLED
        try:
            self._gone = self._spool.set_aside({job.id for job in self._queue.jobs.values() if job.state in needless})
        except FileNotFoundError:
            return True  # Somebody removed it; there is nothing to take away.
        return self._gone is not None

    def _close(self) -> None:
        self._saves.stop()
        self._plane.stop()
        self._remover.stop()
        if self._guard is not None:
            self._guard.make_all_private()
            self._guard.stop()
        self._journal.close()
        if self._gone is not None:
            self._spool.remove(self._gone)
        self._server.close()
        self._selector.unregister(self._wake_read)
        self._wake_read.close()
        self._wake_write.close()
        self._selector.close()

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + self._config.rescan_s
            self._scan()
            self._look_for_lead()
        if self._unjournaled:
            self._note(self._unjournaled.pop())
        for identity in self._outages.rested():
            if not self._last_call.makes_wait(identity):
                self._queue.resume(identity)
        for connection, pid in list(self._owners.items()):
            if not process_exists(pid):
                # Its connection stays until it is read to its end: the leases of its last saves may still be in there.
                self._owner_gone(connection)
        self._server.resume()
        self._plane.tick()
        self._saves.tick(now)
        self._last_call.tick(now)
        self._start_work()
        if not self._owners and self._queue.pending == len(self._queue.gathering()):
            self._farewell.tick()
        self._answer_waiting(now)

    def terminate(self) -> None:
        """From a signal handler: everything on this machine is told to end."""
        self._last_call.terminate()
        self._wake()

    # -- recovery and admission ------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take up what earlier agents and savers left on this disk."""
        # Listed before the records are read: a saver that ends in between has admitted what it captured.
        leftovers = self._spool.leftovers()
        for item in self._spool.pending():
            leftovers -= {item.data, pack_path(item.data)}
            known = self._journal.progress.get(item.id, Progress())
            if known.state in SETTLED:
                self._forget(item)
                continue
            if not known.uploaded and (torn := torn_file(item, known.files)):
                self._queue.admit(item.id, item.order, item.size)
                self._fail(item.id, f"{torn} was written to, or removed, while nobody guarded the snapshot", lost=item)
                continue
            self._take_in(item, uploaded=known.uploaded)
        self._spool.sweep(leftovers)
        for identity, known in self._journal.progress.items():
            if identity not in self._queue.jobs:
                self._queue.admit(identity, (0, 0), 0)
                if known.state in SETTLED:
                    self._queue.end(identity, known.state, known.why)
                else:
                    self._queue.end(identity, FAILED, known.why or "its record vanished from the spool")

    def _scan(self) -> None:
        """Find what was admitted without a doorbell."""
        for identity in self._spool.ready_ids():
            if identity not in self._queue.jobs:
                self._admit_by_id(identity)

    def _spool_has_news(self) -> bool:
        return any(identity not in self._queue.jobs for identity in self._spool.ready_ids())

    def _admit_by_id(self, identity: str) -> Admitted | None:
        if not is_id(identity):
            return None
        try:
            item = self._spool.read(identity)
        except SpoolError as error:  # Not now; the next scan tries again.
            self._remember(str(error))
            return None
        except IntegrityError as error:
            self._queue.admit(identity, (0, 0), 0)
            self._fail(identity, str(error))
            return None
        if item is not None and identity not in self._queue.jobs:
            self._admit(item)
        return item

    def _take_in(self, item: Admitted, *, uploaded: bool = False) -> None:
        self._items[item.id] = item
        shard = layout.is_shard(item.reference)
        self._queue.admit(item.id, item.order, item.size, uploaded=uploaded, shard=shard)
        if shard:
            self._outdate(item)

    def _outdate(self, newer: Admitted) -> None:
        """All ranks were started again: what one of them had not saved before that, it never will."""
        generation = layout.generation(newer.reference)
        for item in self._items.values() if generation else ():
            earlier = layout.is_shard(item.reference) and layout.generation(item.reference) < generation
            if earlier and item.order[0] == newer.order[0] and item.id not in self._outdated:
                self._outdated.add(item.id)
                if self._queue.jobs[item.id].state == UPLOADED:
                    self._gather(item.id)

    def _admit(self, item: Admitted) -> None:
        self._take_in(item)
        if self._config.on_backlog == "supersede":
            self._make_room(item)
        self._last_call.choose_again("a newer one was saved")

    def _make_room(self, item: Admitted) -> None:
        """Drop what is the oldest, if the backlog was full before this one came."""
        folder = os.path.dirname(item.data)
        for _ in range(self._queue.pending):
            why = why_full(self._queue.pending - 1, self._queue.open_bytes - item.size, folder, self._config)
            victim = self._queue.dispensable() if why else None
            if victim is None:
                return
            self._supersede(victim, f"superseded by {item.id}: {why}")
            if is_short_of_disk(folder, self._config):
                return  # What was dropped is given back in a moment.

    def _supersede(self, identity: str, why: str) -> None:
        self._queue.end(identity, SUPERSEDED, why)
        self._outages.end(identity)
        if self._note({"id": identity, "state": SUPERSEDED, "why": why}):
            self._let_go(identity, None)
            self._forget(self._items[identity])
        self._tell_owners({"push": "superseded", "id": identity, "why": why})

    # -- the data plane --------------------------------------------------------------------------------------------

    def _start_work(self) -> None:
        if self._queue.pending and self._plane.ensure():
            for action in self._queue.next_actions():
                if action.kind == "upload":
                    self._start_upload(self._items[action.ids[0]])
                elif action.kind == "gather":
                    self._gather(action.ids[0])
                else:
                    self._plane.tell({"op": "commit", "ids": action.ids})

    def _gather(self, identity: str) -> None:
        """Have the worker wait for the other ranks; only a moment where our task is gone, or this is of an earlier
        attempt: they may be gone for ever.
        """
        late = self._orphaned or identity in self._outdated or journal.order(identity)[0] < self._attempt
        limit = self._config.collective_grace_s if late else self._config.collective_timeout_s
        self._plane.tell({"op": "gather", "id": identity, "timeout_s": limit})

    def _start_upload(self, item: Admitted) -> None:
        known = self._journal.progress.get(item.id, Progress())
        inodes = self._inodes[item.id] = recognizable(item)
        copies = unchanged(inodes, self._journal.stored)
        self._queue.jobs[item.id].sent = sum(item.entries[path].size for path in known.files if path in item.entries)
        self._plane.tell(*handover.messages(item.id, known, copies), {"op": "upload", "id": item.id})

    def _on_worker_death(self, hopeless: bool) -> None:
        under_way = self._queue.restart()
        self._farewell.worker_died()
        if hopeless:
            why = f"The uploader died {MAX_DEATHS} times in a row; see {self._spool.path('agent.log')}"
            for identity in under_way:
                self._fail(identity, why)

    def _on_worker_message(self, message: Message) -> None:
        identity, op = message["id"], message["op"]
        if op == "gone":
            self._farewell.said()
        if op == "notice" and message["why"] not in self._notices:  # One worker after the other may say so.
            self._notices.append(message["why"])
            self._tell_owners({"push": "notice", "why": message["why"]})
        item, job = self._items.get(identity), self._queue.jobs.get(identity)
        if item is None or job is None:
            return
        if op == "progress":
            job.sent += message["bytes"]
            self._outages.end(identity)  # The store is back.
            self._throughput.add(message["bytes"])
            return
        self._plane.is_well()
        if op == "file":
            self._on_file(item, job, message)
        elif op == "parts":
            begun = {"upload": message["upload"], "part_bytes": message["part_bytes"]}
            self._note({"id": identity, "parts": message["path"], **begun})
        elif op == "part":
            part = {"part": message["number"], "etag": message["etag"], "crc32": message["crc32"]}
            self._note({"id": identity, "of": message["path"], **part})
        elif op == "waiting":
            job.why = message["why"]
        elif op == "uploaded":
            # The last word on torn files: a link that lost its lease by force has another mtime by now.
            if job.state != UPLOADING:
                return  # It was told to pause in this moment, and will be ordered again.
            known = self._journal.progress.get(identity, Progress()).files
            standing = {path for path in item.entries if self._stands(item, path)}
            if torn := torn_file(item, known.keys() | standing):
                why = f"{torn} was written to while it was uploaded; its lease was broken by force"
                self._fail(identity, why, lost=item)
                return
            crash_point("agent:before-uploaded")
            self._queue.uploaded(identity)
            self._inodes.pop(identity, None)
            # Leases go only once the journal knows that the files are not needed any more.
            if self._note({"id": identity, "state": UPLOADED}):
                self._let_go(identity, None)
        elif op == "committed":
            crash_point("agent:before-committed")
            self._note({"id": identity, "state": COMMITTED, "reference": message.get("reference", item.reference)})
            self._queue.end(identity, COMMITTED)
            self._outages.end(identity)
            self._let_go(identity, None)
            self._forget(item)
            self._last_call.choose_again()
        elif op == "failed" and job.state not in (UPLOADING, UPLOADED):
            return  # As above.
        elif op == "failed" and message["transient"]:
            self._try_later(identity, message["why"])
        elif op == "failed":
            self._on_failed(item, message)

    def _on_failed(self, item: Admitted, message: Message) -> None:
        if item.id in self._outdated:
            # Nobody misses it: the ranks that were started again have begun with an earlier one.
            self._supersede(item.id, f"given up, as its ranks were started again: {message['why']}")
            return
        lost = item if message.get("decided") else None
        self._fail(item.id, message["why"], lost=lost, refused=message["refused"])

    def _on_file(self, item: Admitted, job: Job, message: Message) -> None:
        path, entry = message["path"], item.entries.get(message["path"])
        if entry is not None and message["copied"]:
            job.sent += entry.size
            self._bytes_copied += entry.size
        if entry is not None and not self._stands(item, path) and is_torn(item, entry):
            return  # What was sent may be torn as well: the checkpoint will fail.
        record: Message = {"id": item.id, "file": path, "crc32": message["crc32"]}
        inode = self._inodes.get(item.id, {}).get(path)
        if inode is not None and is_settled(inode, item.captured_ns):
            record["inode"] = inode
        if self._note(record):
            self._let_go(item.id, [path])

    def _stands(self, item: Admitted, path: str) -> bool:
        return self._guard is not None and self._guard.stands(item.id, path)

    def _try_later(self, identity: str, why: str) -> None:
        """The store is out of reach: pause and try again, until the outage has lasted too long."""
        if not self._outages.pause(identity):
            self._fail(identity, f"The store was out of reach for {self._config.outage_s:g} s: {why}")
            return
        self._remember(f"{identity}: {why}")
        self._queue.hold(identity)

    def _fail(self, identity: str, why: str, *, lost: Admitted | None = None, refused: bool = False) -> None:
        """A checkpoint will not be committed. Its snapshot stays for a later attempt, unless it is ``lost``.

        ``refused``: the store will not take others either.
        """
        if self._queue.jobs[identity].state in FINAL:
            return
        self._queue.end(identity, FAILED, why)
        self._outages.end(identity)
        self._remember(f"{identity}: {why}")
        # A loss nobody could read of later keeps its record, so that the next agent finds and reports it.
        if self._note({"id": identity, "state": FAILED, "why": why}) and lost is not None:
            self._let_go(identity, None)
            self._forget(lost)
        self._tell_owners({"push": "failed", "id": identity, "why": why, "refused": refused})

    def _tell_owners(self, push: Message) -> None:
        for connection in list(self._owners):  # Sending may end a connection.
            connection.send(push)

    def _remember(self, error: str) -> None:
        if error not in self._errors:
            self._errors.append(error)

    def _forget(self, item: Admitted) -> None:
        """Give back a checkpoint's disk."""
        self._items.pop(item.id, None)
        self._inodes.pop(item.id, None)
        self._remover.remove(item)

    def _note(self, record: Message) -> bool:
        """Journal a record. On a full disk it is kept, in order, and written when there is room again; False then."""
        self._unjournaled.append(record)
        try:
            while self._unjournaled:
                self._journal.append(self._unjournaled[0])
                self._unjournaled.popleft()
        except SpoolError as error:
            self._remember(str(error))
        return not self._unjournaled

    # -- leases ----------------------------------------------------------------------------------------------------

    def _guard_files(self, item: Admitted | None, connection: Connection, message: Message, fds: list[int]) -> None:
        identity = str(message.get("id"))
        known = self._journal.progress.get(identity, Progress())
        # Committed in an attempt that the journal has forgotten.
        gone = item is None and not self._spool.is_ready(identity)
        needless = []
        for path, fd in zip(message["guard"], fds, strict=True):
            entry = item.entries.get(path) if item is not None else None
            # In the store: an earlier agent may have let it go without a copy, and died before it said so.
            stored = gone or known.uploaded or known.state in SETTLED or path in known.files
            if stored or (entry is not None and item is not None and not lease.is_of(fd, item.file(path))):
                lease.release(fd)
                os.close(fd)
                needless.append(path)
            elif self._guard is None or entry is None or item is None:
                os.close(fd)
            else:
                self._guard.add(
                    identity,
                    path,
                    Held(fd, item.file(path), entry.size, entry.mtime_ns, origin=os.path.join(item.source, path)),
                )
        if needless:
            connection.send({"push": "unguard", "id": identity, "paths": needless})

    def _let_go(self, identity: str, paths: list[str] | None) -> None:
        if self._guard is not None:
            self._tell_unguarded(identity, self._guard.let_go(identity, paths))

    def _tell_unguarded(self, identity: str, paths: list[str]) -> None:
        for start in range(0, len(paths), protocol.MAX_FDS):
            push = {"push": "unguard", "id": identity, "paths": paths[start : start + protocol.MAX_FDS]}
            for connection in list(self._server.connections):
                connection.send(push)

    def _on_private(self, identity: str, path: str, why: str) -> None:
        """From the guard's thread."""
        self._private.append((identity, path, why))
        self._wake()

    def _wake(self) -> None:
        """From any thread: end the loop's wait."""
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0", socket.MSG_DONTWAIT)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        while self._private:
            identity, path, why = self._private.popleft()
            self._tell_unguarded(identity, [path])
            # A copy that failed does not matter for bytes that are in the store already.
            stored = path in self._journal.progress.get(identity, Progress()).files
            if why and not stored and self._queue.jobs[identity].state != UPLOADED:
                self._fail(identity, why, lost=self._items.get(identity))

    # -- clients ---------------------------------------------------------------------------------------------------

    def _on_message(self, connection: Connection, message: Message, fds: list[int]) -> None:
        op = message.get("op")
        if op == "admit" and _is_admit(message, fds):
            # Read even if known: a scan may have found it before its leases came.
            identity = str(message.get("id"))
            item = self._items.get(identity) or self._admit_by_id(identity)
            self._guard_files(item, connection, message, fds)
            self._start_work()
            return
        for fd in fds:
            os.close(fd)
        if op == "hello":
            self._on_hello(connection, message)
        elif op == "state":
            connection.send({"seq": message.get("seq"), **self._state(str(message.get("id")))})
        elif op == "status":
            connection.send({"seq": message.get("seq"), **self._status()})
        elif op == "save":
            self._on_save(connection, message)
        elif op == "bye":
            self._on_bye(connection, over=message.get("over") is not False)
        elif op == "deadline":
            self._last_call.hear(_seconds(message.get("seconds"), self._config.termination_grace_s), "SIGTERM")
            connection.send({"seq": message.get("seq"), "first": self._queue.first})
        elif op in ("wait", "flush", "room"):
            if op == "flush":
                if "gather_s" in message:
                    self._gather_in(_seconds(message["gather_s"], self._config.collective_grace_s))
                self._scan()
                self._start_work()
                self._hurry(True)
            limit = _seconds(message.get("timeout_s"), self._config.reply_timeout_s)
            self._waiting.append((connection, message, time.monotonic() + limit))
            self._answer_waiting(time.monotonic())
        else:
            connection.send({"seq": message.get("seq"), "error": f"The operation {op!r} is unknown, or lacks a field"})

    def _on_save(self, connection: Connection, message: Message) -> None:
        if self._over:
            why = "The step has ended: nothing can be saved any more. Save before the step returns."
            connection.send({"seq": message.get("seq"), "error": why, "kind": "UsageError"})
            return
        limit = self._config.backlog_timeout_s + self._config.reply_timeout_s
        self._saves.ask(connection, message, _seconds(message.get("timeout_s"), limit))

    def _on_hello(self, connection: Connection, message: Message) -> None:
        if message.get("v") != protocol.VERSION:
            connection.send({"seq": message.get("seq"), "error": f"This agent speaks version {protocol.VERSION}"})
            connection.close()
            return
        connection.greeted = True
        if message.get("owner"):
            self._owners[connection] = connection.pid
            self._grace_until, self._over, self._orphaned = 0.0, False, False
            lead = message.get("lead")
            self._lead = (connection.pid, lead) if isinstance(lead, int) and lead else None
            self._hurry(False)
            self._begin_attempt(message.get("attempt"))
            # A new attempt: what the store refused before gets another chance.
            for job in self._queue.failed():
                if job.id in self._items:
                    self._queue.retry(job.id)
        connection.send({"seq": message.get("seq"), "v": protocol.VERSION, "pid": os.getpid()})
        if message.get("owner"):
            for why in self._notices:
                connection.send({"push": "notice", "why": why})

    def _on_bye(self, connection: Connection, *, over: bool) -> None:
        if over:
            self._owners.pop(connection, None)
            # The step ended well: what the store refused in earlier attempts is of no use to anybody any more.
            self._over = True
        elif connection in self._owners:
            self._owner_gone(connection, for_good=True)
        else:
            return
        self._grace_until, self._drain_until = 0.0, time.monotonic() + self._config.drain_timeout_s

    def _begin_attempt(self, attempt: Any) -> None:
        if isinstance(attempt, int) and attempt > self._attempt:
            self._attempt = attempt
            self._farewell.said()  # Whoever waits for the last attempt's saves waits no more.
            self._gather_in(self._config.collective_grace_s)

    def _look_for_lead(self) -> None:
        """A node whose gang has lost its first goes on for nothing: it waits for the others no longer."""
        if self._lead is not None and parent_of(self._lead[0]) not in (self._lead[1], None):
            self._lead, self._orphaned = None, True
            self._gather_in(self._config.collective_grace_s)

    def _gather_in(self, seconds: float) -> None:
        """Wait for the other ranks no longer than this."""
        for job in self._queue.gathering():
            self._plane.tell({"op": "gather", "id": job.id, "timeout_s": seconds})

    def _on_close(self, connection: Connection) -> None:
        self._waiting = [entry for entry in self._waiting if entry[0] is not connection]
        self._owner_gone(connection)

    def _owner_gone(self, connection: Connection, *, for_good: bool = False) -> None:
        pid = self._owners.pop(connection, None)
        if pid is not None:
            self._drain_until = time.monotonic() + self._config.drain_timeout_s
            self._hurry(not self._owners)
            # An owner that lives lost its connection, not its work: it is back in a moment.
            if process_exists(pid) and not for_good:
                self._grace_until = time.monotonic() + self._config.reply_timeout_s
            else:
                self._orphaned = True
                self._farewell.owner_died(self._attempt)
                self._gather_in(self._config.collective_grace_s)

    def _hurry(self, hurried: bool) -> None:
        """While nobody trains (the task waits for a flush, or is gone) the data plane may use the machine."""
        self._plane.set_priority(idle=not hurried)

    def _answer_waiting(self, now: float) -> None:
        still = []
        waiting, self._waiting = self._waiting, []
        for connection, message, until in waiting:
            op, identity = message["op"], str(message.get("id"))
            if op == "flush":
                done = not self._queue.pending
            elif op == "wait":
                done = self._state(identity)["state"] in FINAL
            else:
                done = not self._why_full(message)
            if done or now >= until:
                if done and op == "flush" and self._owners:
                    self._hurry(False)
                connection.send({"seq": message.get("seq"), **self._answer(op, message)})
            else:
                still.append((connection, message, until))
        self._waiting += still

    def _answer(self, op: str, message: Message) -> Message:
        if op == "flush":
            return self._flush_answer()
        return self._state(str(message.get("id"))) if op == "wait" else {"full": self._why_full(message)}

    def _why_full(self, message: Message) -> str:
        folder = str(message.get("folder"))
        return why_full(self._queue.pending, self._queue.open_bytes, folder, self._config)

    def _state(self, identity: str) -> Message:
        if identity not in self._queue.jobs:
            self._admit_by_id(identity)
        job = self._queue.jobs.get(identity)
        return {"state": job.state, "why": job.why} if job else {"state": None, "why": "unknown to this agent"}

    def _flush_answer(self) -> Message:
        failed = self._queue.failed()
        return {
            "pending": self._queue.pending,
            "pending_bytes": self._queue.pending_bytes,
            "bytes_per_s": self._throughput.bytes_per_s(),
            "failed": [[job.id, job.why] for job in failed[-_MAX_ERRORS:]],
            "failed_count": len(failed),
        }

    def _status(self) -> dict[str, Any]:
        return {
            **self._flush_answer(),
            "pid": os.getpid(),
            "worker_pid": self._plane.pid,
            "committed": self._queue.committed,
            "last_committed": self._queue.last_committed,
            "bytes_copied": self._bytes_copied,
            "leases": self._guard.count() if self._guard else 0,
            "saves": self._saves.count,
            "errors": list(self._errors),
            "warnings": [*self._journal.warnings, *self._notices],
        }


def _seconds(value: Any, default: float) -> float:
    """A time limit as somebody sent it; at most a year."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return default
    return float(min(max(value, 0), _YEAR_S))


def _is_admit(message: Message, fds: list[int]) -> bool:
    guard = message.get("guard")
    return isinstance(guard, list) and len(guard) == len(fds) and all(isinstance(path, str) for path in guard)

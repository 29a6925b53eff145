"""The control plane: one loop that admits, orders, journals and answers. It imports nothing heavy and never waits for
a store.

The agent holds the spool's lock (a descriptor it was given) for as long as it lives, so there is one per spool. It
works for an *owner*, the task's process; when the owner is gone (its connection ends, or its process), the agent
*drains*: it goes on until everything is committed or its deadline has passed, and exits. When all is committed it
removes the spool.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import layout
from ..capture.content import pack_path
from ..config import (
    CALM_S,
    DEATHS_OF_AGENT,
    HELD_UP_S,
    LAST_CALL_PAUSE_S,
    OUTAGE_PAUSE_S,
    SHORT_FIRST_S,
    SHORT_MOST_S,
    SHORT_TIMES,
    Config,
)
from ..errors import IntegrityError, SpoolError
from ..ipc import protocol
from ..ipc.protocol import Message
from ..ipc.server import Connection, Server
from ..spool import journal
from ..spool.journal import (
    ADMITTED,
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
from ..system.backoff import Backoff
from ..system.crash import crash_point
from ..system.filesystems import kind_at, times_tell
from .answers import MAX_ERRORS, Answers
from .backlog import is_short_of_disk, why_full
from .child import Child, Running, end_orphans
from .claims import Claims
from .deadline import LastCall
from .farewell import Farewell
from .housekeeping import Housekeeping, removed
from .leases import Leases
from .outage import Outages
from .owners import Owners
from .pulse import Pulse
from .questions import MAX_QUESTIONS, Questions
from .queue import Queue
from .remover import Remover
from .socket_saves import SocketSaves
from .suspects import Suspects
from .throughput import Throughput
from .unchanged import is_settled, recognizable, unchanged
from .unreachable import Unreachable

_TICK_S = 0.2
#: So often something is tried in vain before newer ones are committed without it; or it shows nothing new for so many
#: times as long as an answer of the store may take.
_MOST_BLOCKED, _MOST_SILENT = 3, 2
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
        Starts a worker; called when there is work and there is none.
    start_saver : callable
        Starts a saver; called when a client asks for a save and there is none.
    start_worker_here : callable or None
        Starts a worker in a thread of this process, for where no process can be started.
    guarded : bool
        Whether leases are held here (a process of its own) or not (a thread).
    temporary : bool
        It stands in for one that could not be started, and ends after a while, when it has nothing to do: whoever needs
        one tries again.
    """

    def __init__(
        self,
        spool: Spool,
        listening: socket.socket,
        start_worker: Callable[[], Running],
        start_saver: Callable[[], Running],
        config: Config,
        *,
        guarded: bool,
        start_worker_here: Callable[[], Running] | None = None,
        temporary: bool = False,
    ) -> None:
        self._spool, self._config = spool, config
        self._gives_way_at = time.monotonic() + CALM_S if temporary else math.inf
        self._selector = selectors.DefaultSelector()
        self._server = Server(listening, self._selector, self._on_message, self._on_close)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: self._on_wake())
        self._queue = Queue(config.max_uploads)
        # First of all: nobody is to look into what does not answer.
        self._unreachable = Unreachable(spool, self._queue, config, self._come_back, self._fail)
        self._journal = Journal(spool.path("journal"), spool.task.attempt, keep=set(spool.ready_ids()))
        self._house = Housekeeping(spool, config, self._journal, self._server, os.getpid() if guarded else 0)
        self._leases = Leases(spool, self._journal, self._server, self._wake, config, guarded=guarded)
        self._remover = Remover(spool, self._wake, self._remember)
        self._items: dict[str, Admitted] = {}
        self._worker = Child(
            self._selector, start_worker, config, self._on_worker_message, self._on_worker_death,
            self._on_worker_trouble, start_worker_here,
        )  # fmt: skip
        self._farewell = Farewell(spool.task, self._worker)
        self._claims = Claims(spool, self._worker, self._say)
        self._socket_saves = SocketSaves(self._selector, start_saver, config)
        self._owners = Owners(config, spool.task.attempt, self._on_owner_left)
        self._questions = Questions(self._answer)
        self._unjournaled: deque[Message] = deque()
        self._throughput = Throughput()
        self._answers = Answers(self._queue, self._worker, self._throughput, config)
        self._bytes_copied = 0
        #: Of checkpoints under way: which of their files a later one may find unchanged.
        self._inodes: dict[str, dict[str, Inode]] = {}
        self._errors: deque[str] = deque(maxlen=MAX_ERRORS)
        #: What the user should know of how the store works here.
        self._notices: deque[str] = deque(maxlen=MAX_ERRORS)
        self._outages = Outages(config.outage_s)
        #: Which checkpoints the task was told are held up, and when it may be told of the next one.
        self._held_up: set[str] = set()
        self._tell_again = 0.0
        self._pulse = Pulse()
        self._suspects = Suspects(
            self._queue, self._journal.progress, self._note, self._stored_bytes, config, spool.path("agent.log"),
            is_own=guarded,
        )  # fmt: skip
        self._shortage = Backoff(0, SHORT_FIRST_S, SHORT_MOST_S)
        #: Since when other ranks are waited for, by id, and by whether that is for a moment only.
        self._gathering: dict[tuple[str, bool], float] = {}
        self._last_call = LastCall(
            self._queue, self._throughput, self._worker, config, self._stored_bytes, self._owners.tell
        )
        #: Shards of ranks that were started again since.
        self._outdated: set[str] = set()
        self._gone: str | None = None
        self._next_scan = 0.0
        self._recover()

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until there is nothing left to do for anybody."""
        try:
            while not self._round():
                pass
        finally:
            self._close()

    def _round(self) -> bool:
        """Do what there is to do now. Returns whether that was all."""
        try:
            if (self._is_over() and self._leave()) or self._gives_way():
                return True
            for key, mask in self._selector.select(_TICK_S):
                key.data(mask)
            self._tick()
            self._shortage.reset()
        except (OSError, MemoryError) as error:
            # No descriptors, memory or disk for a moment. What was half done is begun anew, as after a death; leases
            # are answered meanwhile. Where it does not pass, a new agent may be better off.
            if self._shortage.count >= SHORT_TIMES:
                raise
            self._say(f"The agent lacks something, and goes on as well as it can: {type(error).__name__}: {error}")
            time.sleep(self._shortage.failed(time.monotonic()))
            self._worker.renew()
        return False

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._owners.are_expected(now):
            return False
        idle = self._remover.idle and not self._socket_saves.count and not self._farewell.is_due
        done = not self._queue.pending and idle and not self._spool_has_news()
        return done or self._owners.have_been_gone_for_long(now)

    def _gives_way(self) -> bool:
        return time.monotonic() >= self._gives_way_at and not self._queue.pending and self._remover.idle

    def _leave(self) -> bool:
        """Take the spool away if nothing in it is needed any more. False if something was admitted in this moment.

        What failed is told at the end of a step: an agent whose task was killed leaves it to the next attempt's.
        """
        if self._queue.pending or ((self._spool.ready_ids() or self._queue.failed()) and not self._owners.over):
            return True
        needless = FINAL if self._owners.over else SETTLED
        try:
            self._gone = self._spool.set_aside({job.id for job in self._queue.jobs.values() if job.state in needless})
        except FileNotFoundError:
            return True  # Somebody removed it; there is nothing to take away.
        return self._gone is not None

    def _close(self) -> None:
        self._socket_saves.stop()
        self._worker.stop()
        for job in self._queue.uploading:
            self._suspects.put_down(job.id)
        self._remover.stop()
        self._leases.stop()
        self._journal.close()
        if self._gone is not None:
            self._spool.remove(self._gone)
        self._house.stop()
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
            # A node whose gang has lost its first goes on for nothing: it waits for the others no longer.
            if self._owners.has_lost_lead():
                self._gather_in(self._config.collective_grace_s)
                self._claims.give_up("The first node of the gang is gone")
        if self._unjournaled:
            self._note(self._unjournaled.pop())
        pause_s = LAST_CALL_PAUSE_S if self._last_call.is_near else OUTAGE_PAUSE_S
        for identity in self._outages.rested(pause_s):
            self._queue.resume(identity)
        self._suspects.tick(now, hurry=self._last_call.is_near)
        self._owners.look()
        self._server.resume()
        self._worker.tick(is_busy=bool(self._queue.uploading))
        self._socket_saves.tick(now)
        self._last_call.tick(now)
        self._end_what_hangs(now)
        self._claims.tick(now)
        self._start_work()
        if self._farewell.is_due and not self._owners and self._queue.pending == len(self._queue.gathering()):
            self._scan()  # The last doorbell may not have been rung.
            if self._queue.pending == len(self._queue.gathering()):
                self._farewell.tick()
        self._questions.tick(now)
        self._set_pace()

    def terminate(self) -> None:
        """From a signal handler: everything on this machine is told to end."""
        self._last_call.terminate()
        self._wake()

    # -- recovery and admission ------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take up what earlier agents and savers left on this disk."""
        if self._journal.progress:
            end_orphans(self._spool.directory)
        # Listed before the records are read: a saver that ends in between has admitted what it captured.
        leftovers = self._spool.leftovers()
        for item in self._spool.pending():
            leftovers -= {item.data, pack_path(item.data)}
            known = self._journal.progress.get(item.id, Progress())
            if known.state in SETTLED:
                self._forget(item)
                continue
            if not known.uploaded and (why := self._unreachable.take(item)):
                self._notices.append(why)
                continue
            if not known.uploaded and (why := self._why_torn(item, "while nobody guarded the snapshot")):
                self._queue.admit(item.id, item.order, item.size)
                self._fail(item.id, why, lost=item)
                continue
            self._take_in(item, uploaded=known.uploaded)
            if why := self._suspects.recovered(item.id):
                self._fail(item.id, why)
        self._notices.extend(self._spool.sweep(leftovers))
        for identity, known in self._journal.progress.items():
            if identity not in self._queue.jobs:
                self._queue.admit(identity, (0, 0), 0)
                if known.state in SETTLED:
                    self._queue.end(identity, known.state, known.why)
                else:
                    self._queue.end(identity, FAILED, known.why or "its record vanished from the spool")

    def _come_back(self, item: Admitted) -> None:
        """Its file system answers again."""
        self._items[item.id] = item
        if why := self._why_torn(item, "while nobody could look at it"):
            self._fail(item.id, why, lost=item)

    def _why_torn(self, item: Admitted, when: str) -> str:
        """Guard again what nobody may guard any more. Returns why it is not what was captured; empty: it is."""
        stored = self._journal.progress.get(item.id, Progress()).files
        unguarded = self._leases.take_anew(item, stored)
        if torn := torn_file(item, stored):
            return f"{torn} was written to, or removed, {when}"
        if unguarded and not times_tell(kind_at(item.data)) and not self._spool.saver_may_live(item):
            return f"{unguarded[0]} may have been written to {when}: somebody has it open for writing"
        return ""

    def _scan(self) -> None:
        """Find what was admitted without a doorbell, and what is missing."""
        self._unreachable.look(time.monotonic())
        self._look_after_spool()
        for identity in self._spool.ready_ids():
            if identity not in self._queue.jobs:
                item = self._admit_by_id(identity)
                if item is None or self._spool.saver_may_live(item):
                    continue
                # It did not come to hand over its leases.
                if why := self._why_torn(item, "while nobody guarded the snapshot"):
                    self._fail(identity, why, lost=item)

    def _look_after_spool(self) -> None:
        """Make again what something has removed from the spool; report what cannot be made again."""
        if why := self._house.look(self._items.values()):
            self._say(why)
        self._fail_torn()  # Such files were removed by ourselves.
        open_ones = [item for item in self._items.values() if self._queue.jobs[item.id].state in (ADMITTED, UPLOADING)]
        progress = self._journal.progress
        for item, why in self._house.lost([(item, progress.get(item.id, Progress()).files) for item in open_ones]):
            self._fail(item.id, why, lost=item)

    def _say(self, why: str) -> None:
        """Say something to the owners there are, and to each that comes."""
        if why not in self._notices:
            self._notices.append(why)
            self._owners.tell({"push": "notice", "why": why})

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
            self._leases.let_go(identity)
            self._forget(self._items[identity])
        self._owners.tell({"push": "superseded", "id": identity, "why": why})
        self._last_call.choose_again()

    # -- the worker ------------------------------------------------------------------------------------------------

    def _start_work(self) -> None:
        if self._queue.pending and self._worker.ensure():
            for action in self._queue.next_actions():
                if action.kind == "upload":
                    self._start_upload(self._items[action.ids[0]])
                elif action.kind == "gather":
                    self._gather(action.ids[0])
                else:
                    self._worker.tell({"op": "commit", "ids": action.ids})

    def _gather(self, identity: str) -> None:
        """Have the worker wait for the other ranks; only a moment where our task is gone, or this is of an earlier
        attempt: they may be gone for ever.
        """
        earlier = journal.order(identity)[0] < self._owners.attempt
        late = self._owners.orphaned or identity in self._outdated or earlier
        limit = self._config.collective_grace_s if late else self._config.collective_timeout_s
        # However often it is begun anew: a worker that dies, or a store that fails now and then, adds nothing.
        now = time.monotonic()
        left = max(limit - (now - self._gathering.setdefault((identity, late), now)), 0.0)
        self._worker.tell({"op": "gather", "id": identity, "timeout_s": left, "decides": not late})

    def _start_upload(self, item: Admitted) -> None:
        known = self._journal.progress.get(item.id, Progress())
        inodes = self._inodes[item.id] = recognizable(item)
        copies = [
            {"op": "unchanged", "id": item.id, "path": path, **file._asdict()}
            for path, file in unchanged(inodes, self._journal.stored).items() if path not in known.files
        ]  # fmt: skip
        self._queue.jobs[item.id].sent = sum(item.entries[path].size for path in known.files if path in item.entries)
        self._suspects.taken(item.id)
        self._worker.tell(*journal.steps(item.id, known), *copies, {"op": "upload", "id": item.id})

    def _on_worker_trouble(self, why: str) -> None:
        self._say(
            f"No uploader can be had: {why}. Another one is started; what was saved stays in the spool until then"
        )

    def _on_worker_death(self, spoke: bool) -> None:
        self._look_after_spool()  # The next one needs it whole.
        under_way = self._queue.restart()
        self._farewell.worker_died()
        self._claims.worker_died()
        if spoke:
            for identity, why in list(self._suspects.died(under_way, time.monotonic())):
                self._fail(identity, why)
        self._last_call.stumbled(under_way, "the uploader died")

    def _on_worker_message(self, message: Message) -> None:
        identity, op = message["id"], message.get("op")
        if op == "gone":
            self._farewell.said()
        if op == "claimed":
            self._claims.on_message(message)
        if op == "notice":
            self._say(message["why"])  # One worker after the other may say so.
        item, job = self._items.get(identity), self._queue.jobs.get(identity)
        if item is None or job is None:
            return
        if op == "progress":
            job.sent += message["bytes"]  # Sent is not stored: the store may refuse it.
            self._throughput.add(message["bytes"])
            return
        self._worker.is_well()
        if op in ("uploaded", "committed"):
            job.why = ""
            self._held_up.discard(identity)
            self._outages.end(identity)  # The store is back.
        if op is None and journal.is_step(message):
            self._on_step(item, message)
        elif op == "copied":
            job.sent += message["bytes"]
            self._bytes_copied += message["bytes"]
        elif op == "waiting":
            job.why = message["why"]
            self._outages.end(identity)  # The store has answered; how long others are waited for is bounded.
        elif op == "uploaded":
            # The last word on torn files: a link that lost its lease by force has another mtime by now.
            if job.state != UPLOADING:
                return  # It was told to pause in this moment, and will be ordered again.
            known = self._journal.progress.get(identity, Progress()).files
            standing = {path for path in item.entries if self._leases.stands(item.id, path)}
            if torn := torn_file(item, known.keys() | standing):
                why = f"{torn} was written to while it was uploaded; its lease was broken by force"
                self._fail(identity, why, lost=item)
                return
            crash_point("agent:before-uploaded")
            self._queue.uploaded(identity)
            self._inodes.pop(identity, None)
            # Leases go only once the journal knows that the files are not needed any more.
            if self._note({"id": identity, "state": UPLOADED}):
                self._leases.let_go(identity)
            self._last_call.choose_again()  # It can be committed now.
        elif op == "committed":
            crash_point("agent:before-committed")
            if job.state == FAILED:  # It was given up in the very moment in which it was committed.
                self._queue.retry(identity)
            reference = {**layout.whole(item.reference), **message.get("reference", {})}
            self._note({"id": identity, "state": COMMITTED, "reference": reference})
            self._queue.end(identity, COMMITTED)
            self._leases.let_go(identity)
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
        self._fail_torn()  # Such files were removed by ourselves.
        known = self._journal.progress.get(item.id, Progress()).files
        if self._queue.jobs[item.id].state == UPLOADING and (why := removed(item, known)):
            self._fail(item.id, why, lost=item)
            return
        lost = item if message.get("decided") else None
        self._fail(item.id, message["why"], lost=lost, refused=message["refused"])

    def _on_step(self, item: Admitted, record: Message) -> None:
        """A file or a part is in the store: what the worker says of it is what the journal keeps."""
        path = record.get("file")
        if path is None:
            self._note(record)
            return
        entry = item.entries.get(path)
        if entry is not None and not self._leases.stands(item.id, path) and is_torn(item, entry):
            return  # What was sent may be torn as well: the checkpoint will fail.
        inode = self._inodes.get(item.id, {}).get(path)
        if inode is not None and is_settled(inode, item.captured_ns):
            record["inode"] = inode
        if self._note(record):
            self._leases.let_go(item.id, [path])

    def _try_later(self, identity: str, why: str) -> None:
        """The store is out of reach: say so once, pause and try again, until the outage has lasted too long."""
        if identity not in self._held_up and time.monotonic() >= self._tell_again:
            self._held_up.add(identity)
            self._tell_again = time.monotonic() + HELD_UP_S
            self._owners.tell({"push": "notice", "why": f"Uploads are held up, and tried again: {identity}: {why}"})
        stored = self._stored_bytes(identity)
        if not self._outages.pause(identity, stored):
            tried = f"It was tried for {self._outages.lasted_s(identity):.0f} s, in which nothing more of it was stored"
            self._fail(identity, f"{tried}: {why}")
            return
        self._remember(f"{identity}: {why}")
        self._suspects.put_down(identity)
        self._queue.jobs[identity].why = f"held up, and tried again: {why}"
        self._queue.hold(identity)
        self._queue.jobs[identity].sent = stored
        if self._outages.failures(identity) >= _MOST_BLOCKED:  # It may have itself to blame.
            self._queue.pass_by(identity)
        self._last_call.stumbled([identity], f"{identity} failed ({why})")

    def _stored_bytes(self, identity: str) -> int:
        """How much of a checkpoint is in the store for good."""
        item, known = self._items.get(identity), self._journal.progress.get(identity)
        if item is None or known is None:
            return 0
        return sum(item.entries[path].size for path in known.files if path in item.entries) + sum(
            min(len(upload.parts) * upload.part_bytes, item.entries[path].size if path in item.entries else item.size)
            for path, upload in known.parts.items()
        )

    def _end_what_hangs(self, now: float) -> None:
        """A disk that is gone never answers: what shows nothing new for longer than any outage may last has failed, so
        that others have its place. Nobody waits so long for it: newer ones are committed without it long before.
        """
        batch = self._queue.committing[:1]
        under_way = [*self._queue.uploading, *batch]
        self._pulse.keep([job.id for job in under_way])
        for job in under_way:
            limit = max(self._config.outage_s, 2 * self._config.store_deadline_s, self._config.complete_timeout_s)
            silent_s = self._pulse.silent_s(job.id, (job.tries, 0 if job in batch else job.sent), now)
            if silent_s > limit:
                self._worker.tell({"op": "pause", "id": job.id})
                self._fail(job.id, f"The store has taken nothing of it for {limit:.0f} s, and not said why")
            elif silent_s > _MOST_SILENT * self._config.answer_timeout_s and not self._last_call.is_near:
                self._queue.pass_by(job.id)
                if job in batch:
                    self._worker.tell({"op": "pause", "id": job.id})
                    self._try_later(job.id, f"The store has not answered its commit for {silent_s:.0f} s")

    def _fail(self, identity: str, why: str, *, lost: Admitted | None = None, refused: bool = False) -> None:
        """A checkpoint will not be committed. Its snapshot stays for a later attempt, unless it is ``lost``.

        ``refused``: the store will not take others either.
        """
        if self._queue.jobs[identity].state in FINAL:
            return
        self._queue.end(identity, FAILED, why)
        self._outages.end(identity)
        self._held_up.discard(identity)
        for late in (True, False):  # Whoever tries it again waits anew.
            self._gathering.pop((identity, late), None)
        self._remember(f"{identity}: {why}")
        # A loss nobody could read of later keeps its record, so that the next agent finds and reports it.
        if self._note({"id": identity, "state": FAILED, "why": why}) and lost is not None:
            self._leases.let_go(identity)
            self._forget(lost)
        self._owners.tell({"push": "failed", "id": identity, "why": why, "refused": refused})
        self._last_call.choose_again(f"{identity} failed")

    def _remember(self, error: str) -> None:
        if error not in self._errors:
            self._errors.append(error)

    def _forget(self, item: Admitted) -> None:
        """Remove a checkpoint from the disk, and from what is known of it here."""
        self._items.pop(item.id, None)
        self._inodes.pop(item.id, None)
        for late in (True, False):
            self._gathering.pop((item.id, late), None)
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

    # -- waking up -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """From any thread: end the loop's wait."""
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0", socket.MSG_DONTWAIT)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        for why in self._leases.notices():
            self._say(why)
        self._fail_torn()

    def _fail_torn(self) -> None:
        """Give up what was written to before it could be copied away."""
        for identity, why in self._leases.lost():
            if self._queue.jobs[identity].state != UPLOADED:
                self._fail(identity, why, lost=self._items.get(identity))

    # -- clients ---------------------------------------------------------------------------------------------------

    def _on_message(self, connection: Connection, message: Message, fds: list[int]) -> None:
        op = message.get("op")
        if op == "admit" and _is_admit(message, fds):
            # Read even if known: a scan may have found it before its leases came.
            identity = str(message.get("id"))
            item = self._items.get(identity)
            if item is None and not self._unreachable.has(identity):
                item = self._admit_by_id(identity)
            self._leases.take(item, connection, message, fds)
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
            self._owners.say_goodbye(connection, over=message.get("over") is not False)
        elif op == "deadline":
            self._last_call.hear(_seconds(message.get("seconds"), self._config.termination_grace_s), "SIGTERM")
            connection.send({"seq": message.get("seq"), "first": self._last_call.first})
        elif op in ("wait", "flush", "room", "claim") and self._questions.is_full(connection):
            why = f"{MAX_QUESTIONS} questions of this connection wait for their answers: no more may"
            connection.send({"seq": message.get("seq"), "error": why})
        elif op in ("wait", "flush", "room", "claim"):
            if op == "flush":
                if "gather_s" in message:
                    self._gather_in(_seconds(message["gather_s"], self._config.collective_grace_s))
                self._scan()
                again = message.get("again")
                if isinstance(again, str) and again in self._items:
                    self._queue.retry(again)
                self._start_work()
            self._questions.add(connection, message, _seconds(message.get("timeout_s"), self._config.reply_timeout_s))
        else:
            connection.send({"seq": message.get("seq"), "error": f"The operation {op!r} is unknown, or lacks a field"})

    def _on_save(self, connection: Connection, message: Message) -> None:
        if self._owners.over:
            why = "The step has ended: nothing can be saved any more. Save before the step returns."
            connection.send({"seq": message.get("seq"), "error": why, "kind": "UsageError"})
            return
        limit = self._config.backlog_timeout_s + self._config.reply_timeout_s
        self._socket_saves.ask(connection, message, _seconds(message.get("timeout_s"), limit))

    def _on_hello(self, connection: Connection, message: Message) -> None:
        if message.get("v") != protocol.VERSION:
            connection.send({"seq": message.get("seq"), "error": f"This agent speaks version {protocol.VERSION}"})
            connection.close()
            return
        connection.greeted = True
        if message.get("owner"):
            is_later = self._owners.come(connection, message)
            self._claims.begin(self._owners.attempt, connection.pid, self._owners.lead)
            self._take_access(message.get("access"))
            if is_later:
                self._farewell.said()  # Whoever waits for the last attempt's saves waits no more.
                self._gather_in(self._config.collective_grace_s)
            # A new attempt: what the store refused before gets another chance; what kills agents only once an attempt.
            for job in self._queue.failed():
                if job.id in self._items and (is_later or job.deaths < DEATHS_OF_AGENT):
                    self._queue.retry(job.id)
        connection.send({"seq": message.get("seq"), "v": protocol.VERSION, "pid": os.getpid()})
        if message.get("owner"):
            notices: list[Message] = [{"push": "notice", "why": why} for why in self._notices]
            for push in [*notices, *(push for push in self._owners.unheard() if push not in notices)]:
                connection.send(push)

    def _take_access(self, access: Any) -> None:
        """Open the store from now on as a later attempt does: the keys of the one that started this agent may have
        expired. What is under way begins anew, with a worker that inherits these.
        """
        name = self._spool.store.options.get("access_from")
        if isinstance(name, str) and isinstance(access, str) and os.environ.get(name) != access:
            os.environ[name] = access
            self._worker.renew()

    def _gather_in(self, seconds: float) -> None:
        """Wait for the other ranks no longer than this."""
        for job in self._queue.gathering():
            self._worker.tell({"op": "gather", "id": job.id, "timeout_s": seconds, "decides": False})

    def _on_close(self, connection: Connection) -> None:
        self._questions.forget(connection)
        self._owners.leave(connection)

    def _on_owner_left(self, for_good: bool) -> None:
        if for_good:
            self._farewell.owner_died(self._owners.attempt)
            self._gather_in(self._config.collective_grace_s)

    def _set_pace(self) -> None:
        """While nobody trains (the task waits for a flush, or is gone, or soon will be) the worker may use the
        machine.
        """
        waits = self._questions.has("flush") or self._questions.has("claim")
        trains = len(self._owners) > 0 and not waits and not self._last_call.is_near
        self._worker.set_priority(idle=trains)

    def _answer(self, message: Message, first: bool, late: bool) -> Message | None:
        """What somebody is told who waits; None: not yet. The spool is looked into the ``first`` time only."""
        op = message["op"]
        if op == "flush":
            return self._answers.flush() if late or not self._queue.pending else None
        if op == "claim":
            attempt = message.get("attempt")
            return self._claims.answer(attempt if isinstance(attempt, int) else self._owners.attempt, late=late)
        if op == "wait":
            state = self._state(str(message.get("id")), look=first)
            return state if late or state["state"] in FINAL else None
        return self._answers.room(message, late=late)

    def _state(self, identity: str, *, look: bool = True) -> Message:
        if look and identity not in self._queue.jobs:
            self._admit_by_id(identity)
        return self._answers.state(identity)

    def _status(self) -> dict[str, Any]:
        return {
            **self._answers.flush(),
            "pid": os.getpid(),
            "worker_pid": self._worker.pid,
            "committed": self._queue.committed,
            "last_committed": self._queue.last_committed,
            "bytes_copied": self._bytes_copied,
            **self._leases.facts(),
            "socket_saves": self._socket_saves.count,
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

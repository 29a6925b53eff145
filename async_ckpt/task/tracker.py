"""What became of the checkpoints of a task, and waiting for them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .. import layout
from ..config import ASK_SLICE_S, CLAIM_SLICE_S, CLAIM_START_S, LOOK_S, Config
from ..errors import AgentError, CheckpointError, NoAgent, StoreError, WaitTimeout
from ..ipc.client import AgentClient
from ..ipc.protocol import Message
from ..ranks import agreement
from ..spool import journal
from ..spool.journal import ADMITTED, COMMITTED, FAILED, RELEASED, REMOVED, SUPERSEDED
from ..spool.records import Admitted
from ..spool.spool import Spool
from ..spool.starts import Start
from ..stores.base import Store
from ..system.clock import Moment
from ..system.concurrency import for_each
from ..system.undisturbed import go_on, undisturbed
from .due import Due
from .lookup import run_with_store
from .progress import ProgressLines, flush_line

log = logging.getLogger(__name__)

T = TypeVar("T")

VANISHED = "it was removed from the spool before it was stored, by something that cleans that directory"


class Tracker:
    """Follows what a task has saved.

    Parameters
    ----------
    owner : bool
        This is the task's own process: it cannot outlive the task.
    began : Moment, optional
        When the attempt began, if this process knows it.
    """

    def __init__(
        self, spool: Spool, config: Config, client: AgentClient, *, owner: bool, began: Moment | None = None
    ) -> None:
        self.spool, self.config, self.task, self.client = spool, config, spool.task, client
        self.due = Due(spool, config, client.clock, began)
        self._owner_pid = os.getpid() if owner else 0
        #: The step is over: the spool may be gone, and what was known last counts.
        self.closed = False
        #: Id of the checkpoint of this task that was loaded last; empty: none was.
        self.loaded = ""
        #: What this process saved, by id, until it is known to be committed.
        self.saved: dict[str, dict[str, Any]] = {}
        #: States that could not be copied: id → why.
        self.not_staged: dict[str, str] = {}
        #: References of what is committed, and does not stand in the journal.
        self._unjournaled: list[dict[str, Any]] = []
        self._journaled: dict[str, journal.CheckpointState] = {}
        self._open_journal()

    # -- the task ------------------------------------------------------------------------------------------------------

    @property
    def is_owner(self) -> bool:
        """Whether this is the task's own process, and no child that it has forked."""
        return self._owner_pid == os.getpid()

    def check_attempt(self) -> None:
        """Raise ``SpoolError`` in a process that has outlived its task; the task's own knows how it stands."""
        if not self.is_owner and not self.closed:
            self.spool.check_attempt()

    @contextlib.contextmanager
    def while_it_runs(self) -> Iterator[None]:
        """For what needs a running task: what fails because the task has ended meanwhile says so in its error."""
        self.check_attempt()
        try:
            yield
        except CheckpointError:
            self.check_attempt()
            raise

    def wait_for_start(self, limit_s: float | None = None) -> Start:
        """Which start of the attempt this is. The agent asks the store for that; this waits until it knows.

        A store that does not answer in time is not waited for, and the log says so: see ``spool.starts.go_alone``.

        Parameters
        ----------
        limit_s : float, optional
            How many seconds at most; default: ``claim_wait_s``, or ``settle_timeout_s`` for the nodes of a gang, which
            have to agree.

        Raises
        ------
        SpoolError
            The spool cannot be read or written.
        """
        default = self.config.settle_timeout_s if self.task.nodes > 1 else self.config.claim_wait_s
        limit, now = default if limit_s is None else limit_s, self.client.clock.monotonic
        deadline, why = now() + limit, ""
        # The limit counts from when the store was asked. A busy machine may take long until then; ``last`` bounds that.
        last = now() + max(limit, CLAIM_START_S)
        while (start := self.spool.start) is None and (left := deadline - now()) > 0 and not why:
            go_on()
            piece = min(left, CLAIM_SLICE_S)
            try:
                answer = self.client.request(
                    "claim", piece + self.config.reply_timeout_s, attempt=self.task.attempt, timeout_s=piece
                )
                why = answer["why"]
                if not answer.get("asked", True):
                    deadline = min(now() + limit, last)
            except (AgentError, WaitTimeout):  # Another one may be there in a moment.
                self.client.clock.sleep(min(left, LOOK_S))
        if start is not None:
            return start
        start = self.spool.go_alone()
        if start.alone:
            log.warning(
                f"Nobody has said within {limit:g} s whether attempt {self.task.attempt} was begun before"
                f"{f' ({why})' if why else ''}. The task goes on: what another start may have saved is neither loaded "
                f"nor written over, as versions count from {self.task.version(start.number * layout.START_STEP)} on"
            )
        return start

    def run(self, function: Callable[[Store], Awaitable[T]]) -> T:
        """Do something with the task's store; see ``run_with_store``."""
        return run_with_store(self.spool.store, self.config, function)

    # -- what became of its checkpoints --------------------------------------------------------------------------------

    @undisturbed
    def state(self, identity: str) -> tuple[str, str]:
        """(state, why) of a checkpoint of this task.

        Raises
        ------
        SpoolError
            This process has outlived the task, and what became of the checkpoint is not known here any more.
        """
        known = self.look().get(identity)
        if known is not None and known.state in RELEASED:
            return known.state, known.why
        asked = False
        if not self.closed:
            with contextlib.suppress(AgentError, WaitTimeout):
                answer = self.client.request("state", self.config.reply_timeout_s, id=identity)
                if answer["state"]:
                    return answer["state"], answer["why"]
                asked = True
        if (known := self.look().get(identity)) is not None:
            return known.state, known.why
        self.check_attempt()  # Without this a checkpoint of a task that has ended would be under way for ever.
        if asked and identity not in self.spool.records and identity in self.saved:
            # Neither the disk nor the agent knows it any more.
            return (COMMITTED, "") if self.in_store([identity]) else (FAILED, VANISHED)
        return ADMITTED, ""

    def look(self) -> dict[str, journal.CheckpointState]:
        """What the journal says; after the end, what it said then, as it may be gone with the spool."""
        if self._process != os.getpid():
            self._open_journal()
        with self._reading:
            if not self.closed:
                self._journaled = dict(self._journal.look())
            return self._journaled

    def _open_journal(self) -> None:
        """For a forked child as well: the lock may have been held by a thread that does not exist there."""
        self._process, self._reading = os.getpid(), threading.Lock()
        #: By id: states that a thread of this process copies, and that are not admitted yet.
        self.staging: dict[str, threading.Event] = {}
        self._journal = journal.Reader(self.spool.path("journal"))

    def in_store(self, identities: Collection[str]) -> list[str]:
        """Which of these, saved here, are in the store, whatever became of the spool. Those of which the store does not
        say are not among them.
        """
        found: list[str] = []

        async def look_up(store: Store, identity: str) -> None:
            reference = self.saved[identity]
            with contextlib.suppress(StoreError):
                stored = await agreement.read_commit(store, reference)
                # A rank's part has no metadata of its own.
                if stored is not None and (stored == reference or layout.is_shard(reference)):
                    found.append(identity)

        async def look_up_all(store: Store) -> None:
            await for_each(identities, self.config.files_in_flight, functools.partial(look_up, store))

        if identities:
            with contextlib.suppress(StoreError):
                self.run(look_up_all)
        return found

    def not_in_store(self, saved: Iterable[str], told: Mapping[str, str]) -> dict[str, str]:
        """What is not in the store: id → why. The journal decides; where something has removed it, or the disk was too
        full for it, the store does.

        Parameters
        ----------
        saved : iterable of str
            Ids of what this process saved: each must be known to be committed, as an empty spool proves nothing.
        told : mapping
            What the agent says that has failed, by id with the reason.
        """
        known = self.look()
        released = {identity for identity, item in known.items() if item.state in RELEASED}
        failed = {identity: why for identity, why in told.items() if identity not in released}
        failed |= {identity: item.why for identity, item in known.items() if item.state == FAILED}
        failed |= self.not_staged
        for identity in saved:
            if identity in released:
                self.saved.pop(identity, None)
            elif identity in self.saved and self.state(identity)[0] != SUPERSEDED:
                failed.setdefault(identity, VANISHED)
        for identity in self.in_store(failed.keys() & self.saved.keys()):
            del failed[identity]
            self._unjournaled.append(self.saved.pop(identity))
        return failed

    @undisturbed
    def committed(self) -> list[bytes]:
        """References of what this attempt has committed, newest first, each as JSON.

        From the journal: no store is asked. They may be thousands, of which few are ever looked at.
        """
        mine = f"{self.task.attempt}."
        journaled = {  # Once, though all ranks of a collective save may have a record here.
            (journal.order(identity), item.commit)
            for identity, item in self.look().items()
            if item.state == COMMITTED and item.commit is not None and identity.startswith(mine)
        }
        others = {(layout.order(data), json.dumps(data).encode()) for data in self._unjournaled}
        return [text for _, text in sorted(journaled | others, reverse=True)]

    @undisturbed
    def status(self) -> dict[str, Any]:
        """How far the store is behind, and what would be lost: ``exposure`` (a dict, see below), ``pending``,
        ``pending_bytes`` (not sent yet), ``bytes_per_s``, ``committed`` (how many, since this agent began),
        ``last_committed``, ``failed``, ``errors``, ``warnings``, ``socket_saves`` (asked for over the socket, and not
        done), ``leases``, ``bytes_copied`` (in the store, instead of being sent), ``pace`` (a dict), and the processes
        that work on it (``pid``, ``uploader_pid``).

        ``pace`` has ``bytes_per_s``: how fast is sent at most, 0 for as fast as the store takes it; ``why``;
        ``slowdown``: by which share steps of the training take longer meanwhile; ``pressure``: for which share of the
        last seconds all that runs here waited for a disk or for memory. None: nobody knows.

        ``exposure`` has ``machine_s``: seconds of work that would be lost if this machine were lost now, since the
        capture of the newest checkpoint in the store, or since the attempt began (None: not known in this moment);
        ``process_s``: the same if only the task's process ended, and a retry began on this machine; ``by_hand_s``: as
        ``machine_s``, for somebody who loads by hand, as a retry does not load checkpoints with ``latest=False``;
        ``saves``: how many saves are only on this disk; ``next_durable_s``: seconds until the next of them is in the
        store, or None, and ``next_durable_why``: why that is not known.

        Raises
        ------
        AgentError, WaitTimeout
            No agent can be had, or it does not answer.
        SpoolError
            This process has outlived its task.
        """
        with self.while_it_runs():
            answer = self.client.request("status", self.config.reply_timeout_s)
        answer.pop("seq", None)
        return {**answer, "spool": self.spool.directory}

    def annotate(self, reference: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """See ``Reference.annotate``."""
        with self.while_it_runs():
            self.spool.annotations.add(layout.identity(reference), reference, metadata)
            self.client.tell("annotated")

    # -- waiting -------------------------------------------------------------------------------------------------------

    @undisturbed
    def wait(self, identity: str, timeout_s: float | None = None) -> None:
        """See ``Reference.wait``."""
        limit = self.config.flush_timeout_s if timeout_s is None else timeout_s
        deadline = self.client.clock.monotonic() + limit
        agent, progress = self.agent_until(deadline), ProgressLines(self.config, self.client.clock)
        while True:
            go_on()
            left = deadline - self.client.clock.monotonic()
            if self.closed or left <= 0:
                state, why = self.state(identity)
            else:
                with self.while_it_runs():
                    answer = agent.ask("wait", min(left, ASK_SLICE_S, progress.due_in_s), id=identity)
                if answer is None:
                    progress.say(flush_line(None, agent.trouble))
                    continue
                # None: the agent, which began after that, does not know it.
                state, why = (answer["state"], answer["why"]) if answer["state"] else self.state(identity)
            if state in (COMMITTED, REMOVED):  # It was there.
                return
            if state == SUPERSEDED:
                raise StoreError(f"Checkpoint {identity} is not in the store: {why}")
            if state == FAILED:
                raise StoreError(
                    f"Checkpoint {identity} is not in the store: {why}", hint="It is kept in the spool; save again"
                )
            if left <= 0:
                raise WaitTimeout(f"Checkpoint {identity} is not in the store after {limit:g} s (it is {state})")
            progress.say(f"waiting for checkpoint {identity}, which is {state}{f': {why}' if why else ''}")

    def wait_until_staged(self, deadline: float) -> list[str]:
        """Wait for what this process copies into place in the background, until ``deadline`` (monotonic seconds).
        Returns the ids of what is not admitted by then.
        """
        if self._process != os.getpid():
            self._open_journal()
        while (waiting := list(self.staging.items())) and (left := deadline - self.client.clock.monotonic()) > 0:
            go_on()
            waiting[0][1].wait(min(left, LOOK_S))
        return [identity for identity, _ in waiting]

    def wait_for_all(self, items: Iterable[Admitted], limit_s: float) -> None:
        """Wait until these have been committed or have failed, ``limit_s`` seconds at most for all of them."""
        deadline = self.client.clock.monotonic() + limit_s
        for item in items:
            with contextlib.suppress(CheckpointError):  # The agent reports what has failed.
                self.wait(item.id, max(deadline - self.client.clock.monotonic(), 0.0))

    def wait_for_key(self, key: str) -> None:
        """Wait until the checkpoint of this key is in the store, if it is on its way there from this machine.

        Raises
        ------
        StoreError, WaitTimeout
            As ``wait``.
        """
        for item in self.pending(key):
            self.wait(item.id)

    def pending(self, key: Any) -> Iterator[Admitted]:
        """What of this key lies on this machine's disk."""
        return (item for item in self.spool.records.pending() if item.reference["key"] == key)

    def agent_until(self, deadline: float) -> RetryingClient:
        """The agent, for whoever has until ``deadline`` (monotonic seconds)."""
        return RetryingClient(self, deadline)


class RetryingClient:
    """Asks the agent again and again until a deadline. It may be busy, be started again, hang and be ended, or not be
    there at all. What was saved lies on the disk meanwhile, so nothing is lost by waiting.
    """

    def __init__(self, tracker: Tracker, deadline: float) -> None:
        self._tracker, self._client, self._deadline = tracker, tracker.client, deadline
        #: Why there was no answer the last time; empty: there was one.
        self.trouble = ""

    def ask(self, op: str, timeout_s: float, **fields: Any) -> Message | None:
        """What the agent says within ``timeout_s`` seconds; None: nothing yet.

        Raises
        ------
        AgentError, WaitTimeout
            There is none, or it has said nothing, and the deadline is over; or it refuses.
        SpoolError
            This process has outlived its task: there never will be an answer.
        """
        limit = timeout_s + self._tracker.config.reply_timeout_s
        try:
            answer = self._client.request(op, limit, timeout_s=timeout_s, **fields)
        except (NoAgent, WaitTimeout) as error:
            self._tracker.check_attempt()
            left = self._deadline - self._client.clock.monotonic()
            if left <= 0:
                raise
            self.trouble = error.what
            if isinstance(error, NoAgent):
                self._client.clock.sleep(min(LOOK_S, left))
            return None
        self.trouble = ""
        return answer

"""The half of a ``Checkpointer`` that follows what was saved: how far it has come, and waiting for it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .. import layout
from ..config import HURRY_ANSWER_S, HURRY_SLICE_S, Config
from ..errors import AgentError, CheckpointError, FlushError, StoreError, WaitTimeout
from ..ranks import agreement
from ..spool import journal
from ..spool.journal import ADMITTED, COMMITTED, FAILED, SETTLED, SUPERSEDED
from ..spool.spool import Spool
from ..stores import catalog
from ..stores.base import Store
from ..system.undisturbed import go_on, reporter, undisturbed
from .asking import Patient, Progress, flush_line
from .loader import Reading, Report

_WAIT_SLICE_S = 5.0
#: So many checkpoints are named in an error.
_NAMED = 5
#: Of so many it is asked whether the store has them after all.
_ASKED = 100

_VANISHED = "it was removed from the spool before it was stored, by something that cleans that directory"


class Following(Reading):
    """What became of the checkpoints of a task."""

    def __init__(self, spool: Spool, config: Config, *, owner: bool, report: Report) -> None:
        self.spool, self.config, self.task = spool, config, spool.task
        self._owned_by = os.getpid() if owner else 0
        self._report = reporter(report)
        self._known: dict[str, journal.Progress] = {}
        self._read_anew()
        self._closed = False
        #: What this process saved, by id, until it is known to be committed.
        self._saved: dict[str, dict[str, Any]] = {}
        self._unjournaled: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def _while_it_runs(self) -> Iterator[None]:
        """For what needs a running task: whatever fails because the task has ended meanwhile says so."""
        self._check_attempt()
        try:
            yield
        except CheckpointError:
            self._check_attempt()
            raise

    @undisturbed
    def state(self, identity: str) -> tuple[str, str]:
        """(state, why) of a checkpoint of this task.

        Raises
        ------
        SpoolError
            This process has outlived the task, and what became of the checkpoint is not known here any more.
        """
        state, why = self._seen(identity)
        if state is None and identity in self._saved:  # Neither the disk nor the agent knows it any more.
            return (COMMITTED, "") if self._stored([identity]) else (FAILED, _VANISHED)
        return state or ADMITTED, why

    def _seen(self, identity: str) -> tuple[str | None, str]:
        """(state, why) as the agent, the journal or the spool has it; None where all of them should and none does."""
        asked = False
        if not self._closed:
            with contextlib.suppress(AgentError, WaitTimeout):
                answer = self._client.request("state", self.config.reply_timeout_s, id=identity)
                if answer["state"]:
                    return answer["state"], answer["why"]
                asked = True
        known = self._look().get(identity)
        if known is not None:
            return known.state, known.why
        self._check_attempt()  # Or it would be under way for ever.
        return None if asked and not self.spool.is_ready(identity) else ADMITTED, ""

    def _look(self) -> dict[str, journal.Progress]:
        """What the journal says; after the end, what it said then, as it may be gone with the spool."""
        if self._process != os.getpid():
            self._read_anew()
        with self._reading:
            if not self._closed:
                self._known = dict(self._journal.look())
            return self._known

    def _read_anew(self) -> None:
        """For a forked child as well: the lock may have been held by a thread that does not exist there."""
        self._process, self._reading = os.getpid(), threading.Lock()
        self._journal = journal.Reader(self.spool.path("journal"))

    @undisturbed
    def wait(self, identity: str, timeout_s: float | None = None) -> None:
        """See ``Reference.wait``."""
        limit = self.config.flush_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        agent, progress = self._patient(deadline), Progress(self.config, self._report)
        while True:
            go_on()
            left = deadline - time.monotonic()
            if self._closed or left <= 0:
                state, why = self.state(identity)
            else:
                with self._while_it_runs():
                    answer = agent.ask("wait", min(left, _WAIT_SLICE_S), id=identity)
                if answer is None:
                    progress.say(functools.partial(flush_line, None, agent.trouble))
                    continue
                # None: the agent, which began after that, does not know it.
                state, why = (answer["state"], answer["why"]) if answer["state"] else self.state(identity)
            if state == COMMITTED:
                return
            if state == SUPERSEDED:
                raise StoreError(f"Checkpoint {identity} is not in the store: {why}")
            if state == FAILED:
                raise StoreError(
                    f"Checkpoint {identity} is not in the store: {why}", hint="It is kept in the spool; save again"
                )
            if left <= 0:
                raise WaitTimeout(f"Checkpoint {identity} is not in the store after {limit:g} s (it is {state})")
            said = f"waiting for checkpoint {identity}, which is {state}{f': {why}' if why else ''}"
            progress.say(functools.partial(str, said))

    def _patient(self, deadline: float) -> Patient:
        return Patient(self._client, self.config, deadline, self._check_attempt)

    @undisturbed
    def status(self) -> dict[str, Any]:
        """How far the store is behind: ``pending``, ``pending_bytes`` (not sent yet), ``bytes_per_s``, ``committed``
        (how many, since this agent began), ``last_committed``, ``failed``, ``errors``, ``warnings``, ``socket_saves``
        (asked for over the socket, and not done), ``leases``, ``bytes_copied`` (in the store, instead of being sent),
        and the processes that work on it (``pid``, ``worker_pid``).

        Raises
        ------
        AgentError, WaitTimeout
            No agent can be had, or it does not answer.
        SpoolError
            This process has outlived its task.
        """
        with self._while_it_runs():
            answer = self._client.request("status", self.config.reply_timeout_s)
        answer.pop("seq", None)
        return {**answer, "spool": self.spool.directory}

    @undisturbed
    def flush(
        self, timeout_s: float | None = None, report: Report | None = None, *, gather_s: float | None = None
    ) -> None:
        """Wait until everything this task admitted is in the store. May be called again, also after it was interrupted.

        Parameters
        ----------
        timeout_s : float or None
            Limit in seconds; None: ``METAFLOW_ASYNC_CKPT_FLUSH_TIMEOUT_S``.
        report : callable or None
            Gets a line of progress now and then; None: whoever else is told things.
        gather_s : float or None
            So many seconds longer at most other ranks are waited for in collective saves.

        Raises
        ------
        FlushError
            Some checkpoints of this attempt are not in the store; names them and says why.
        SpoolError
            This process has outlived its task.
        """
        with self._while_it_runs():
            self._flush(timeout_s, self._report if report is None else reporter(report), gather_s)

    def _flush(self, timeout_s: float | None, report: Report, gather_s: float | None) -> None:
        limit = self.config.flush_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        agent, progress = self._patient(deadline), Progress(self.config, report)
        failed: dict[str, str] = {}
        saved = set(self._saved)
        fields = {"gather_s": gather_s} if gather_s is not None else {}
        # Also where no record is there: something may have removed it, and the agent knows what there was.
        ask = bool(saved - {identity for identity, item in self._look().items() if item.state in journal.FINAL})
        ask = ask or not os.path.exists(self.spool.path("spool.json"))
        while ask or self.spool.ready_ids():
            ask = False
            go_on()
            piece = max(min(self.config.progress_s, deadline - time.monotonic()), 0)
            try:
                answer = agent.ask("flush", piece, **fields)
            except (AgentError, WaitTimeout) as error:
                raise self._flush_error(str(error)) from error
            if answer is None:
                ask = True
                progress.say(functools.partial(flush_line, None, agent.trouble))
                continue
            if not answer["pending"]:
                failed.update(answer["failed"])
                break
            if time.monotonic() >= deadline:
                raise self._flush_error(f"the limit of {limit:g} s is over")
            progress.say(functools.partial(flush_line, answer, ""))
        failed |= self._not_committed(saved)
        for identity in self._stored(failed.keys() & self._saved.keys()):
            del failed[identity]
            self._unjournaled.append(self._saved.pop(identity))
        mine = {identity: why for identity, why in failed.items() if identity.startswith(f"{self.task.attempt}.")}
        if not mine and (needed := self._standing_on(failed)):
            why = self._try_again(needed, deadline)
            failed.pop(needed)
            if why:
                mine[needed] = failed[needed] = f"saved by an earlier attempt, and nothing newer is in the store: {why}"
        for identity in failed.keys() - mine.keys():
            report(f"Checkpoint {identity} of an earlier attempt is not in the store: {failed[identity]}")
        if mine:
            raise self._flush_error("", mine)

    @undisturbed
    def hurry(self, seconds: float) -> list[str]:
        """This process ends soon: bring in what can still make it, the newest first.

        Parameters
        ----------
        seconds : float
            The time there is.

        Returns
        -------
        list of str
            Ids of what is not in the store by then.

        Raises
        ------
        AgentError, WaitTimeout
            There is no agent, or no answer.
        """
        deadline = time.monotonic() + seconds
        pending, error = True, None
        while pending and (left := deadline - time.monotonic()) > 0:
            piece = min(left, HURRY_SLICE_S)
            try:
                # Again and again: an agent that was started meanwhile does not know of it.
                self._client.request("deadline", left, seconds=left)
                pending = self._client.request("flush", left, timeout_s=max(piece - HURRY_ANSWER_S, piece / 2))[
                    "pending"
                ]
                error = None
            except WaitTimeout:
                pass  # Then time is over as well.
            except AgentError as raised:
                error = raised
                time.sleep(min(HURRY_ANSWER_S, left))
        if error is not None:
            raise error
        ended = {identity for identity, item in self._look().items() if item.state in SETTLED}
        return sorted(set(self.spool.ready_ids()) - ended, key=journal.order, reverse=True)

    def _not_committed(self, saved: set[str]) -> dict[str, str]:
        """What failed, by id with the reason. An empty spool proves nothing: each save of this process must be known
        to be committed.
        """
        known = self._look()
        failed = {identity: item.why for identity, item in known.items() if item.state == FAILED}
        for identity in saved & self._saved.keys():
            journaled = identity in known and known[identity].state in journal.FINAL
            state, why = (known[identity].state, "") if journaled else self._seen(identity)
            if state in SETTLED:
                reference = self._saved.pop(identity)
                if not journaled and state == COMMITTED:  # The disk is too full for the journal.
                    self._unjournaled.append(reference)
            else:
                failed.setdefault(identity, why or (f"it is {state}" if state else _VANISHED))
        return failed

    def _stored(self, identities: Collection[str]) -> list[str]:
        """Which of these that seem to be lost are in the store all the same, whatever became of the spool."""
        found: list[str] = []

        async def ask(store: Store) -> None:
            for identity in list(identities)[:_ASKED]:
                reference = self._saved[identity]
                with contextlib.suppress(StoreError):  # It cannot be told: it counts as lost.
                    stored = await agreement.read_commit(store, reference)
                    # A rank's part has no metadata of its own.
                    if stored is not None and (stored == reference or layout.is_shard(reference)):
                        found.append(identity)

        if identities:
            with contextlib.suppress(StoreError):
                self.run(ask)
        return found

    def _standing_on(self, failed: Mapping[str, str]) -> str | None:
        """The newest that failed, where it is what a next attempt would miss: this attempt has loaded it, or would load
        it from this machine's disk, and the store has nothing newer of the task.
        """

        def is_kept(identity: str) -> bool:
            with contextlib.suppress(CheckpointError):
                item = self.spool.read(identity)
                return item is not None and bool(item.reference["latest"])
            return False

        needed = max((one for one in failed if one == self._loaded or is_kept(one)), key=journal.order, default=None)
        if needed is None:
            return None
        known = [identity for identity, item in self._look().items() if item.state == COMMITTED]
        newest = max(map(journal.order, known if self._loaded in failed else [*known, self._loaded]), default=(-1, -1))
        if newest < journal.order(needed):
            with contextlib.suppress(StoreError):  # Other machines may have run other attempts.
                stored = self.run(functools.partial(catalog.newest_of_task, task=self.task, config=self.config))
                newest = max(newest, layout.order(stored)) if stored is not None else newest
        return needed if newest < journal.order(needed) else None

    def _try_again(self, identity: str, deadline: float) -> str:
        """Have something brought in that failed before. Returns why it is not in the store; empty if it is."""
        agent = self._patient(deadline)
        try:
            while agent.ask("flush", 0.0, again=identity) is None:
                go_on()
            self.wait(identity, max(deadline - time.monotonic(), 0.0))
        except CheckpointError as error:
            return str(error)
        return ""

    def _flush_error(self, why: str, failed: Mapping[str, str] | None = None) -> FlushError:
        if failed is None:
            ended = {identity for identity, item in self._look().items() if item.state in SETTLED}
            failed = {item.id: "" for item in self.spool.pending() if item.id not in ended}
            with contextlib.suppress(AgentError, WaitTimeout):  # Or nobody knows; it is not asked for each in turn.
                for identity in list(failed)[:_NAMED]:
                    answer = self._client.request("state", self.config.reply_timeout_s, id=identity)
                    failed[identity] = answer["why"] if answer["state"] else ""
        names = [f"{identity} ({reason})" if reason else identity for identity, reason in failed.items()]
        shown = "; ".join(names[:_NAMED]) + (f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        subject = f"{len(names)} checkpoint{'s are' if len(names) != 1 else ' is'} not in the store: {shown}"
        return FlushError(
            f"{subject}: {why}" if why else subject,
            where=self.spool.directory,
            hint="What the spool still holds is uploaded again by a retry on this machine" + self._who_goes_on(),
        )

    def _who_goes_on(self) -> str:
        """Which process stays behind a failed flush, and for how long."""
        pid = self._client.agent_pid
        if not pid or not self.spool.ready_ids():
            return ""
        if self._owned_by != os.getpid():
            return f". The agent (pid {pid}) goes on with what waits"
        return (
            f". The agent (pid {pid}) goes on with what waits, also when this process has ended: then for up to "
            f"{self.config.drain_timeout_s:.0f} s, or until 'kill -9 {pid}'"
        )

    @undisturbed
    def committed(self) -> list[bytes]:
        """References of what this attempt has committed, newest first, each as JSON.

        From the journal: no store is asked. They may be thousands, of which few are ever looked at.
        """
        mine = f"{self.task.attempt}."
        journaled = {  # Once, though all ranks of a collective save may have a record here.
            (journal.order(identity), item.commit)
            for identity, item in self._look().items()
            if item.state == COMMITTED and item.commit is not None and identity.startswith(mine)
        }
        others = {(layout.order(data), json.dumps(data).encode()) for data in self._unjournaled}
        return [text for _, text in sorted(journaled | others, reverse=True)]

    def disown(self, identity: str) -> None:
        """Leave it to others to see that a checkpoint of this process gets into the store: ``flush`` does not vouch for
        it, and nothing is kept of it here.
        """
        self._saved.pop(identity, None)

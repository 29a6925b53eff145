"""Waiting until everything that a task has saved is in the store: when asked, at the end of the task, and when its
machine is about to go.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping

from .. import layout
from ..config import HURRY_ANSWER_S, HURRY_SLICE_S
from ..errors import AgentError, CheckpointError, FlushError, StoreError, WaitTimeout
from ..spool import journal
from ..spool.journal import COMMITTED, FINAL, RELEASED
from ..stores import catalog
from ..system.undisturbed import go_on, undisturbed
from .progress import ProgressLines, flush_line
from .tracker import Tracker

log = logging.getLogger(__name__)

#: How many checkpoints are named in an error.
_NAMED = 5


class Flush:
    """Waits for what a ``Tracker`` follows. The journal says what became of each checkpoint; the agent is asked when to
    look again.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._client = tracker, tracker.client
        self._spool, self._config, self._task = tracker.spool, tracker.config, tracker.task

    @undisturbed
    def flush(self, timeout_s: float | None = None, *, gather_s: float | None = None) -> None:
        """Wait until everything this task admitted is in the store. May be called again, also after it was interrupted.
        The log has a line of progress now and then.

        Parameters
        ----------
        timeout_s : float or None
            Limit in seconds; None: ``METAFLOW_ASYNC_CKPT_FLUSH_TIMEOUT_S``.
        gather_s : float or None
            In collective saves, other ranks are waited for so many seconds longer at most.

        Raises
        ------
        FlushError
            Some checkpoints of this attempt are not in the store; names them and says why.
        SpoolError
            This process has outlived its task.
        """
        limit = self._config.flush_timeout_s if timeout_s is None else timeout_s
        with self._tracker.while_it_runs():
            self._flush(limit, {} if gather_s is None else {"gather_s": gather_s})

    def _flush(self, limit_s: float, fields: Mapping[str, float]) -> None:
        deadline = self._client.clock.monotonic() + limit_s
        if late := self._tracker.wait_until_staged(deadline):
            raise self._error(f"the limit of {limit_s:g} s is over", dict.fromkeys(late, "it is still being copied"))
        agent, progress = self._tracker.agent_until(deadline), ProgressLines(self._config, self._client.clock)
        saved, told = set(self._tracker.saved), {}
        while not self._is_over(saved):
            go_on()
            try:
                left = deadline - self._client.clock.monotonic()
                piece = max(min(self._config.progress_s, progress.due_in_s, left), 0)
                answer = agent.ask("flush", piece, **fields)
            except (AgentError, WaitTimeout) as error:
                raise self._error(str(error)) from error
            if answer is not None and not answer["pending"] and not answer["annotations"]:
                told = dict(answer["failed"])
                break
            if answer is not None and self._client.clock.monotonic() >= deadline:
                raise self._error(f"the limit of {limit_s:g} s is over")
            progress.say(flush_line(answer, agent.trouble))
        failed = self._tracker.not_in_store(saved, told)
        mine = {identity: why for identity, why in failed.items() if identity.startswith(f"{self._task.attempt}.")}
        if not mine and (needed := self._needed_by_the_next_attempt(failed)):
            why = self._try_again(needed, deadline)
            failed.pop(needed)
            if why:
                mine[needed] = failed[needed] = f"saved by an earlier attempt, and nothing newer is in the store: {why}"
        for identity in failed.keys() - mine.keys():
            log.warning(f"Checkpoint {identity} of an earlier attempt is not in the store: {failed[identity]}")
        if mine:
            raise self._error("", mine)

    def _is_over(self, saved: set[str]) -> bool:
        """Whether all that was admitted has come to its end, as far as the disk tells."""
        if self._spool.records.ids() or self._spool.annotations.names():
            return False
        if not os.path.exists(self._spool.path("spool.json")):
            return False
        known = self._tracker.look()
        return all(identity in known and known[identity].state in FINAL for identity in saved)

    def _needed_by_the_next_attempt(self, failed: Mapping[str, str]) -> str | None:
        """The newest that failed, where it is what a next attempt would miss: this attempt has loaded it, or would load
        it from this machine's disk, and the store has nothing newer of the task.
        """
        loaded = self._tracker.loaded

        def is_kept(identity: str) -> bool:
            with contextlib.suppress(CheckpointError):
                item = self._spool.records.read(identity)
                return item is not None and layout.is_latest(item.reference)
            return False

        needed = max((one for one in failed if one == loaded or is_kept(one)), key=journal.order, default=None)
        if needed is None:
            return None
        known = [identity for identity, item in self._tracker.look().items() if item.state == COMMITTED]
        newest = max(map(journal.order, known if loaded in failed else [*known, loaded]), default=(-1, -1))
        if newest < journal.order(needed):
            with contextlib.suppress(StoreError):  # Other machines may have run other attempts.
                stored = self._tracker.run(
                    functools.partial(catalog.newest_of_task, task=self._task, config=self._config)
                )
                newest = max(newest, layout.order(stored)) if stored is not None else newest
        return needed if newest < journal.order(needed) else None

    def _try_again(self, identity: str, deadline: float) -> str:
        """Have something brought in that failed before. Returns why it is not in the store; empty if it is."""
        agent = self._tracker.agent_until(deadline)
        try:
            while agent.ask("flush", 0.0, again=identity) is None:
                go_on()
            self._tracker.wait(identity, max(deadline - self._client.clock.monotonic(), 0.0))
        except CheckpointError as error:
            return str(error)
        return ""

    def _error(self, why: str, failed: Mapping[str, str] | None = None) -> FlushError:
        if failed is None:
            failed = {identity: "" for identity in self._pending()}
            with contextlib.suppress(AgentError, WaitTimeout):  # Or nobody knows; it is not asked for each in turn.
                for identity in list(failed)[:_NAMED]:
                    answer = self._client.request("state", self._config.reply_timeout_s, id=identity)
                    failed[identity] = answer["why"] if answer["state"] else ""
        if not failed:
            count = len(self._spool.annotations.names())
            return FlushError(
                f"What was added to the metadata of checkpoints {count} times is not in the store: {why}",
                where=self._spool.directory, hint="The checkpoints are in the store; annotate them again",
            )  # fmt: skip
        names = [f"{identity} ({reason})" if reason else identity for identity, reason in failed.items()]
        named = "; ".join(names[:_NAMED]) + (f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        subject = f"{len(names)} checkpoint{'s are' if len(names) != 1 else ' is'} not in the store: {named}"
        return FlushError(
            f"{subject}: {why}" if why else subject,
            where=self._spool.directory,
            hint="What the spool still holds is uploaded again by a retry on this machine" + self._who_goes_on(),
        )

    def _pending(self) -> list[str]:
        """Ids of what lies in the spool and has not come to its end, oldest first."""
        known = self._tracker.look()
        ids = (
            identity
            for identity in self._spool.records.ids()
            if not (item := known.get(identity)) or item.state not in RELEASED
        )
        return sorted(ids, key=journal.order)

    def _who_goes_on(self) -> str:
        """Which process stays behind a failed flush, and for how long."""
        pid = self._client.agent_pid
        if not pid or not self._spool.records.ids():
            return ""
        if not self._tracker.is_owner:
            return f". The agent (pid {pid}) goes on with what waits"
        return (
            f". The agent (pid {pid}) goes on with what waits, also when this process has ended: then for up to "
            f"{self._config.drain_timeout_s:.0f} s, or until 'kill -9 {pid}'"
        )

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
            Ids of what is not in the store by then, newest first.

        Raises
        ------
        AgentError, WaitTimeout
            There is no agent, or no answer.
        """
        deadline = self._client.clock.monotonic() + seconds
        self._tracker.wait_until_staged(deadline)
        pending, error = True, None
        while pending and (left := deadline - self._client.clock.monotonic()) > 0:
            limit = min(left, HURRY_SLICE_S)
            limit = max(limit - HURRY_ANSWER_S, limit / 2)
            try:
                # Again and again: an agent that was started meanwhile does not know of it.
                self._client.request("deadline", left, seconds=left)
                pending = self._client.request("flush", left, timeout_s=limit)["pending"]
                error = None
            except WaitTimeout:
                pass  # Then time is over as well.
            except AgentError as raised:
                error = raised
                self._client.clock.sleep(min(HURRY_ANSWER_S, left))
        if error is not None:
            raise error
        return self._pending()[::-1]

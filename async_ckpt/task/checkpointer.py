"""A process's access to the checkpoints of a task. The decorator, ``Checkpoint`` and the command line use it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import layout
from ..card.rows import Rows, sum_of
from ..config import ENV_ATTEMPT, ENV_SPOOL, LOOK_S, NO_AGENT_START_S, Config
from ..errors import AgentError, NoAgent, SpoolError, UsageError, WaitTimeout
from ..ipc.client import AgentClient
from ..retention.rules import rules_of
from ..spool import place, recovery
from ..spool.spool import Spool
from ..stores.base import StoreSpec
from ..system.clock import moment
from ..system.files import occupy_standard_streams
from ..system.log import set_level
from ..system.undisturbed import undisturbed
from .agent_messages import AgentMessages
from .flush import Flush
from .launch import Launcher
from .loader import Loader
from .progress import format_bytes, format_seconds
from .resume import Resumption
from .save import Saver
from .steps import StepTimer
from .tracker import Tracker

log = logging.getLogger(__name__)

#: So often a spool is made that is gone again in the same moment.
_MAX_STARTS = 3


class Checkpointer:
    """What one process needs to save, follow, flush, list and load checkpoints of a task, and its agent.

    Parameters
    ----------
    spool : Spool
        The task's; its ``task.attempt`` is the attempt saves belong to.
    uploader : str
        ``"process"`` or ``"thread"``: what is started where no agent runs.
    owner : bool
        True in the task's own process: the agent is started now and exits some time after this process.
    gang_leader_pid : int
        The process on this machine that started this one as a node of its gang: when it dies, the gang is over. 0:
        there is none.
    card : StoreSpec, optional
        Where the cards of all tasks are kept; None: this task has none.
    """

    def __init__(
        self,
        spool: Spool,
        config: Config,
        *,
        uploader: str = "process",
        owner: bool = False,
        gang_leader_pid: int = 0,
        card: StoreSpec | None = None,
    ) -> None:
        occupy_standard_streams()
        set_level(config.log_level)
        self.spool, self.config, self.task = spool, config, spool.task
        messages = self._messages = AgentMessages(self.task, config)
        #: Gives the keys of checkpoints that the task's artifacts refer to now: these are not removed, unless that was
        #: asked for. None: nobody can tell.
        self.referenced: Callable[[], set[str] | None] = set
        self._launcher = Launcher(spool, config, uploader)
        hello: dict[str, Any] = {"attempt": self.task.attempt, "gang_leader_pid": gang_leader_pid}
        if owner and (access := os.environ.get(str(spool.store.options.get("access_from")))):
            hello["access"] = access
        self._client = AgentClient(
            self._launcher.connect, owner=owner, config=config, hello=hello, on_message=self._on_message,
            on_answer=self._launcher.on_answer, on_silence=self._launcher.on_silence,
        )  # fmt: skip
        if card is not None:
            hello["card"] = card.to_json()
        began = moment(self._client.clock) if owner else None
        if owner:
            hello["began"] = began
        self.tracker = Tracker(spool, config, self._client, owner=owner, began=began)
        self.saver, self.loader = Saver(self.tracker, messages), Loader(self.tracker)
        self.resumption = Resumption(self.tracker, self.loader)
        self._flush = Flush(self.tracker)
        self.step = StepTimer(self._client.tell).step
        # What is asked of a checkpointer stands in the part that does it.
        self.save, self.next_key = self.saver.save, self.saver.next_key
        self.list, self.load, self.load_newest = self.loader.list, self.loader.load, self.loader.load_newest
        self.state, self.wait, self.wait_for_key = self.tracker.state, self.tracker.wait, self.tracker.wait_for_key
        self.status, self.committed, self.due = self.tracker.status, self.tracker.committed, self.tracker.due.is_due
        self.flush, self.new_early_directory = self._flush.flush, spool.snapshots.new_early_directory

    @classmethod
    def start(
        cls,
        places: str | Sequence[Sequence[str]],
        task: layout.TaskInfo,
        store: StoreSpec,
        config: Config,
        *,
        uploader: str,
        gang_leader_pid: int = 0,
        card: StoreSpec | None = None,
    ) -> Checkpointer:
        """The checkpointer of a task's own process: makes the spool, or takes up that of an earlier attempt, and starts
        the agent.

        Parameters
        ----------
        places : str or sequence
            A directory for spools, or what ``spool.place.places`` returns.
        uploader, gang_leader_pid, card
            As for the class.

        Raises
        ------
        SpoolError, AgentError
            One of the two cannot be had.
        """
        for _ in range(_MAX_STARTS):
            try:
                spool = place.make([[places]] if isinstance(places, str) else places, task, store)
            except SpoolError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # As below.
                raise
            checkpointer = cls(spool, config, uploader=uploader, owner=True, gang_leader_pid=gang_leader_pid, card=card)
            try:
                spool.begin()
                left = spool.records.ids()
                is_there = checkpointer._attach()
            except (AgentError, SpoolError, WaitTimeout):
                is_there = False
                if os.path.exists(spool.path("spool.json")):
                    checkpointer._client.close()
                    raise
            if not is_there:
                # An agent that had drained an earlier attempt may have removed the spool in this moment; then there
                # is nothing left to take up, and a new one is made.
                checkpointer._client.close()
                continue
            if left:
                # Perhaps nobody guards it until the agent does, so the trainer must not write to it before.
                with contextlib.suppress(AgentError, WaitTimeout):
                    checkpointer._client.request("state", config.reply_timeout_s, id="")
            return checkpointer
        raise AgentError(
            "The spool is removed again and again",
            where=str(places),
            hint="See whether something cleans that directory",
        )

    def _attach(self) -> bool:
        """Connect to an agent, or start one. Waits where that of the last attempt hangs, or where none can be had for a
        while. Returns False where the spool is gone, so that a new one is needed first.

        Raises
        ------
        AgentError, WaitTimeout
            None can be had.
        """
        deadline, said = self._client.clock.monotonic() + NO_AGENT_START_S, False
        while True:
            try:
                self._client.attach(self.config.reply_timeout_s)
                return True
            except (NoAgent, WaitTimeout) as error:
                if not os.path.exists(self.spool.path("spool.json")):
                    return False
                if self._client.clock.monotonic() >= deadline:
                    raise
                if not said:
                    said = True
                    log.warning(f"{error}. It is tried again for up to {NO_AGENT_START_S:g} s")
                self._client.clock.sleep(LOOK_S)

    @classmethod
    def from_environment(cls) -> Checkpointer:
        """The checkpointer of the task this process was started by.

        Raises
        ------
        UsageError
            No task's environment, or one that is not as a task makes it: it says what to do.
        SpoolError
            The task has ended.
        """
        directory, attempt = os.environ.get(ENV_SPOOL), os.environ.get(ENV_ATTEMPT)
        if not directory:
            raise UsageError(
                f"This process does not belong to a step with @checkpoint ({ENV_SPOOL} is not set)",
                hint="Save inside such a step or in a subprocess that inherits its environment; to read, name a task: "
                "Checkpoint().list(task='Flow/run/step/task')",
            )
        return _of_process(os.getpid(), directory, attempt)

    # -- the end -------------------------------------------------------------------------------------------------------

    def hurry(self, seconds: float) -> list[str]:
        """See ``Flush.hurry``; what hangs, or cannot be started, is waited for less as well."""
        self.tracker.due.end_is_told()
        self._launcher.hurry()
        return self._flush.hurry(seconds)

    def _on_message(self, push: Mapping[str, Any]) -> None:
        if push["push"] == "needed":
            found, keys = self._referenced(), [str(key) for key in push["keys"]]
            self._client.tell("needed", keys=keys if found is None else [key for key in keys if key in found])
        else:
            self._messages.receive(push)

    def _referenced(self) -> set[str] | None:
        """What ``referenced`` says, as far as it counts."""
        found = self.referenced() if self.config.keep_referenced else set()
        if found is None:
            self._messages.receive({
                "push": "notice", "why": "There is too much in this task's artifacts to see which checkpoints they "
                "refer to, so none is removed. keep_referenced=False removes them without looking at artifacts",
            })  # fmt: skip
        return found

    def say_what_was_saved(self) -> None:
        """One line in the log, at the end of the step: what this attempt has saved, and how long that has taken."""
        rows = Rows(self.spool.directory)
        with contextlib.suppress(OSError):  # The spool is gone, with all that it knew.
            rows.read_on()
        saved = sum_of(rows.all.values(), self.task.attempt)
        if saved.last is None:
            return
        what = f"{saved.saves} checkpoint{'s' if saved.saves != 1 else ''}"
        where = "all in the store" if saved.stored == saved.saves else f"{saved.stored} in the store"
        after = saved.last.get("durable_s")
        last = f", the last one {format_seconds(after)} after its save" if after is not None else ""
        log.info(
            f"Saved {what} ({format_bytes(saved.size)}; {format_bytes(saved.sent)} were sent): {where}{last}. "
            f"The step waited {format_seconds(saved.blocked_s)} for its saves"
        )

    def lost_with_machine_s(self) -> float | None:
        """Seconds of work that would be lost with this machine now, as the agent has written it down last; nobody is
        waited for. None: that is not known.
        """
        since = recovery.read(self.spool.directory).latest.since
        return None if since is None else since.age_s(moment(self._client.clock))

    @undisturbed
    def hand_over(self) -> None:
        """The agent was killed and this process ends as well: see that another agent has its leases before.

        Raises
        ------
        AgentError, WaitTimeout
            There is none.
        """
        if self._client.leases_held:
            # Answered by nobody but the next one, which was sent the leases before: the connection to the one that was
            # killed may not have been seen to end yet.
            self._client.request("state", self.config.reply_timeout_s, id="")

    @undisturbed
    def close(self, *, clean: bool) -> None:
        """Let go of the agent: it finishes what is left and exits. ``clean``: the step is over, the spool is not
        needed again.
        """
        if self.tracker.closed:
            return
        self.tracker.look()
        self.tracker.closed = True
        # Where nothing is ever removed, nobody asks what is needed.
        needed = self._referenced() if clean and rules_of(self.config) else None
        self._client.say_goodbye(over=clean, keys=needed)
        self._client.close()
        self._launcher.join(self.config.reply_timeout_s)


@functools.lru_cache(maxsize=1)
def _of_process(pid: int, directory: str, attempt: str | None) -> Checkpointer:
    """Kept, because each has a thread and a connection, and people make a ``Checkpoint()`` for every save."""
    return Checkpointer(place.inherited(directory, attempt), Config.from_env())

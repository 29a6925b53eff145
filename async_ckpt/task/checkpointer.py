"""A process's access to the checkpoints of a task. The decorator, ``Checkpoint`` and the command line use it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

from .. import layout
from ..config import ENV_ATTEMPT, ENV_SPOOL, LOOK_S, NO_AGENT_START_S, Config
from ..errors import AgentError, NoAgent, SpoolError, UsageError, WaitTimeout
from ..ipc.client import AgentClient
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
    """

    def __init__(
        self,
        spool: Spool,
        config: Config,
        *,
        uploader: str = "process",
        owner: bool = False,
        gang_leader_pid: int = 0,
    ) -> None:
        occupy_standard_streams()
        set_level(config.log_level)
        self.spool, self.config, self.task = spool, config, spool.task
        messages = AgentMessages(self.task, config)
        self._launcher = Launcher(spool, config, uploader)
        hello: dict[str, Any] = {"attempt": self.task.attempt, "gang_leader_pid": gang_leader_pid}
        if owner and (access := os.environ.get(str(spool.store.options.get("access_from")))):
            hello["access"] = access
        self._client = AgentClient(
            self._launcher.connect, owner=owner, config=config, hello=hello, on_message=messages.receive,
            on_answer=self._launcher.on_answer, on_silence=self._launcher.on_silence,
        )  # fmt: skip
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
    ) -> Checkpointer:
        """The checkpointer of a task's own process: makes the spool, or takes up that of an earlier attempt, and starts
        the agent.

        Parameters
        ----------
        places : str or sequence
            A directory for spools, or what ``spool.place.places`` returns.
        uploader, gang_leader_pid
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
            checkpointer = cls(spool, config, uploader=uploader, owner=True, gang_leader_pid=gang_leader_pid)
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
        self._client.say_goodbye(over=clean)
        self._client.close()
        self._launcher.join(self.config.reply_timeout_s)


@functools.lru_cache(maxsize=1)
def _of_process(pid: int, directory: str, attempt: str | None) -> Checkpointer:
    """Kept, because each has a thread and a connection, and people make a ``Checkpoint()`` for every save."""
    return Checkpointer(place.inherited(directory, attempt), Config.from_env())

"""The processes that the agent works for: the task's; and when an attempt follows another one, the next task's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..config import Config
from ..ipc.protocol import Message
from ..ipc.server import Connection
from ..layout import TaskInfo
from ..system.clock import Clock
from ..system.processes import parent_of, process_exists

#: How many messages are kept for an owner that is not connected yet, and how many that every owner is to get.
_MOST_UNHEARD = 20


class Owners:
    """The connections of the task's processes, and how long the agent stays without one.

    Parameters
    ----------
    task : TaskInfo
        The spool's. Its attempt counts until an owner tells a later one.
    on_gone : callable
        An owner is gone for good.
    """

    def __init__(self, config: Config, task: TaskInfo, on_gone: Callable[[], None], clock: Clock) -> None:
        self._clock, self._config, self._is_gang, self._on_gone = clock, config, task.nodes > 1, on_gone
        self._pids: dict[Connection, int] = {}
        #: Processes that live and have lost their connection.
        self._expected: set[int] = set()
        #: The owner's process, and its parent, without which its gang has no future.
        self._leader: tuple[int, int] | None = None
        self.attempt = task.attempt
        #: An attempt whose process on this node has died, of which the other nodes of the gang are to be told.
        self.untold_death: int | None = None
        #: The step ended well: nothing is saved any more, and what the store refused is of no use to anybody.
        self.over = False
        #: The owner has said that the attempt has failed.
        self.failed = False
        #: The owner is gone: other ranks are waited for only for a moment.
        self.orphaned = False
        self._drain_until = self._clock.monotonic() + config.drain_timeout_s
        self._grace_until = self._clock.monotonic() + config.reply_timeout_s
        #: What was to be told while none was connected, though one was to come.
        self._unheard: deque[Message] = deque(maxlen=_MOST_UNHEARD)
        #: What each owner hears that comes: how the store works here, what is wrong with the spool.
        self.notices: deque[str] = deque(maxlen=_MOST_UNHEARD)

    def __len__(self) -> int:
        return len(self._pids)

    @property
    def pids(self) -> list[int]:
        """The processes; 0: one that cannot be seen from here."""
        return list(self._pids.values())

    @property
    def gang_leader_pid(self) -> int:
        """The process without which the gang of the owner has no future; 0: none that can be seen from here."""
        return self._leader[1] if self._leader is not None else 0

    @property
    def state(self) -> str:
        """How the task is, in a word: ``running``, ``ended``, ``failed``; ``lost`` if it is gone without a word."""
        if self.over or self.failed:
            return "ended" if self.over else "failed"
        return "lost" if self.orphaned else "running"

    def are_expected(self, now: float) -> bool:
        """Whether one is there, or may come in a moment (monotonic seconds)."""
        return bool(self._pids) or now < self._grace_until

    def have_been_gone_for_long(self, now: float) -> bool:
        """Whether the time to drain in is over (monotonic seconds)."""
        return now >= self._drain_until

    def tell(self, push: Message) -> None:
        """Send something to each; while none is connected and one is about to be, it is kept for that one."""
        if not self._pids and self.are_expected(self._clock.monotonic()):
            self._unheard.append(push)
        for connection in list(self._pids):  # Sending may end a connection.
            connection.send(push)

    def say(self, why: str) -> None:
        """Say something to the owners there are, and to each that comes."""
        if why not in self.notices:
            self.notices.append(why)
            self.tell({"push": "notice", "why": why})

    def news(self) -> list[Message]:
        """What who has just come is to hear; what nobody has heard comes once."""
        notices: list[Message] = [{"push": "notice", "why": why} for why in self.notices]
        found = [*notices, *(push for push in self._unheard if push not in notices)]
        self._unheard.clear()
        return found

    def come(self, connection: Connection, message: Message) -> bool:
        """One says hello. Returns whether this begins a later attempt."""
        self._pids[connection], connection.is_owners = connection.pid, True
        self._expected.clear()
        self._grace_until, self.over, self.failed, self.orphaned = 0.0, False, False, False
        leader, attempt = message.get("gang_leader_pid"), message.get("attempt")
        self._leader = (connection.pid, leader) if isinstance(leader, int) and leader else None
        if not isinstance(attempt, int) or attempt <= self.attempt:
            return False
        self.attempt = attempt
        self.untold_death = None  # Whoever waits for the last attempt's saves waits no more.
        return True

    def say_goodbye(self, connection: Connection, *, over: bool) -> None:
        """A client says that it ends. If it is an owner, ``over`` says that the step has ended well. Other clients may
        say it as well, and it means nothing.

        An owner's process may have been found to be gone before this was read.
        """
        if not connection.is_owners:
            return
        if over:
            self._pids.pop(connection, None)
            self.over = True
        elif connection in self._pids:
            self.failed = True
            self.leave(connection, for_good=True)
        else:
            return
        self._grace_until, self._drain_until = 0.0, self._clock.monotonic() + self._config.drain_timeout_s

    def leave(self, connection: Connection, *, for_good: bool = False) -> None:
        """A connection has ended, or its process; it may be anybody's."""
        pid = self._pids.pop(connection, None)
        if pid is None:
            return
        self._drain_until = self._clock.monotonic() + self._config.drain_timeout_s
        # An owner that lives lost its connection, not its work: it is back in a moment. Or it is about to die.
        if process_exists(pid) and not for_good:
            self._grace_until = self._clock.monotonic() + self._config.reply_timeout_s
            self._expected.add(pid)
        else:
            self._leave_for_good()

    def _leave_for_good(self) -> None:
        self.orphaned = True
        if self._is_gang:
            self.untold_death = self.attempt
        self._on_gone()

    def look(self) -> None:
        """See which processes are there no more."""
        for connection, pid in list(self._pids.items()):
            if pid and not process_exists(pid):  # 0: it is in another PID namespace, and its connection tells.
                # Its connection stays until it is read to its end: the leases of its last saves may still be in there.
                self.leave(connection)
        for pid in [pid for pid in self._expected if not process_exists(pid)]:
            self._expected.discard(pid)
            self._leave_for_good()

    def has_lost_leader(self) -> bool:
        """Whether the first of our gang, on this machine, is gone; told once."""
        if self._leader is None or parent_of(self._leader[0]) in (self._leader[1], None):
            return False
        self._leader, self.orphaned = None, True
        return True

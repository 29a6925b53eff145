"""A saving process's end of the agent's socket. It holds the leases of what it saved beside the agent.

A thread of its own, the *keeper*, reads answers, closes descriptors of leases that the agent has let go, and sees at
once when the agent dies. It then gets a new agent and hands it every lease that is left. If none can be had, it makes
the linked files private itself. So a trainer that waits for a lease is never left waiting for a dead agent.

Doorbells are sent by the saving thread, without blocking. That matters: a trainer in C++ may hold the interpreter's
lock while it waits for a lease, and the keeper could not run then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..capture import lease
from ..capture.private import make_private
from ..config import (
    AGENT_CONFIRM_S,
    AGENT_SILENT_S,
    LOOK_S,
    LOST_CONNECTIONS_S,
    MAX_LOST_CONNECTIONS,
    PING_S,
    Config,
)  # fmt: skip
from ..errors import AgentError, CheckpointError, NoAgent, ProtocolError, SnapshotError, WaitTimeout
from ..spool.records import Admitted
from ..system.backoff import Backoff
from ..system.clock import REAL_CLOCK, Clock
from ..system.undisturbed import ended_by, go_on, run
from . import protocol
from .protocol import Message

#: A process that may have this many descriptors surely has some left. They are not counted then: that takes long.
_MANY_DESCRIPTORS = 1 << 14

#: The number of the keeper's own question; those of others count from 1.
_KEEPERS = 0


@dataclass
class AgentConnection:
    """A connection to a running agent.

    Parameters
    ----------
    pid : int
        Its process; 0: it is a thread of the process that started it.
    fresh : bool
        It is known to serve this process, for example because it was started for this connection.
    """

    sock: socket.socket
    pid: int
    fresh: bool = False
    #: When something came from it last, in monotonic seconds; 0: nothing has.
    heard: float = 0.0


@dataclass(frozen=True)
class LeasedFile:
    """One leased file of a snapshot: the descriptor with the lease, the absolute path of the hard link, and the file's
    size in bytes and mtime in nanoseconds.
    """

    fd: int
    path: str
    size: int
    mtime_ns: int


class AgentClient:
    """Talks to the agent of a spool; safe for threads and for forked children (which connect anew).

    Parameters
    ----------
    connect : callable
        Finds the agent, or starts one, and returns a connected ``AgentConnection``; raises ``AgentError``.
    owner : bool
        Whether the agent works for this process: it is restarted if it dies, and exits some time after this process.
    hello : mapping
        What the first frame says of this process beside its pid; see ``protocol``.
    on_message : callable
        Gets what the agent tells without being asked, except about leases. The keeper's thread calls it.
    clock : Clock
        Whoever waits for this client's answers goes by it as well.
    on_answer : callable
        The keeper's thread calls it when the first bytes of an agent come, and when it answers after it was silent.
    on_silence : callable
        The keeper's thread calls it about once a second while the agent leaves a question unanswered. It returns
        whether to give up this connection.
    """

    def __init__(
        self,
        connect: Callable[[], AgentConnection],
        *,
        owner: bool,
        config: Config,
        hello: Mapping[str, Any],
        on_message: Callable[[Message], None] = lambda push: None,
        on_answer: Callable[[AgentConnection], None] = lambda connection: None,
        on_silence: Callable[[AgentConnection], bool] = lambda connection: False,
        clock: Clock = REAL_CLOCK,
    ) -> None:
        self.clock = clock
        self._connect, self._owner, self._config, self._on_message = connect, owner, config, on_message
        self._on_answer, self._on_silence, self._hello = on_answer, on_silence, hello
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._connection: AgentConnection | None = None
        self._closed = False
        self._sequence = 0
        self._answers: dict[int, Message | None] = {}
        self._changed = threading.Condition(self._lock)
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._leases: dict[str, dict[str, LeasedFile]] = {}
        #: When the keeper asked the question that it has no answer to yet, and when it asked last.
        self._asked: float | None = None
        self._pinged = self.clock.monotonic()
        self._losses = Backoff(MAX_LOST_CONNECTIONS, LOOK_S, self._config.agent_pause_s, LOST_CONNECTIONS_S)

    # -- for savers ------------------------------------------------------------------------------------------------

    @property
    def leases_held(self) -> int:
        with self._lock:
            return sum(len(leases) for leases in self._leases.values())

    @property
    def agent_pid(self) -> int:
        """The process id of the agent that is connected; 0: it is a thread, or there is none."""
        connection = self._connection
        return connection.pid if connection is not None else 0

    def is_guarded(self) -> bool:
        """Whether there is an agent in a process of its own, which can answer the kernel when somebody wants to write
        to a leased file. Connects if need be.
        """
        connection = self._connection if self._process == os.getpid() and not self._closed else None
        if connection is not None and connection.fresh:
            return connection.pid != 0
        try:
            return run(lambda: self.attach(AGENT_CONFIRM_S)).pid != 0
        except CheckpointError:
            return False

    def attach(self, limit_s: float) -> AgentConnection:
        """Connect to the agent, if that was not done yet, and have it answer within ``limit_s`` seconds. One that ran
        already may be about to exit, or may have too many clients, and then would not guard leases.

        Raises
        ------
        AgentError, WaitTimeout
            None can be had.
        """
        self._check_fork()
        with self._lock:
            connection = self._ensure()
        if not connection.fresh:
            self.request("state", limit_s, id="")
            with self._lock:
                connection = self._ensure()
                connection.fresh = True
        return connection

    def lease_budget(self) -> int:
        """How many more leases may be taken. They are descriptors of the trainer: at most a quarter of those it may
        have, and half of what is left.
        """
        most, (soft, _) = self._config.max_leases, resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            most = min(most, soft // 4)
        budget = most - self.leases_held
        if 0 <= soft < _MANY_DESCRIPTORS:
            with contextlib.suppress(FileNotFoundError):  # Without /proc nobody tells.
                budget = min(budget, (soft - _open_descriptors(soft)) // 2)
        return max(budget, 0)

    def announce(self, item: Admitted, leases: Mapping[str, int]) -> None:
        """Ring the doorbell for an admitted checkpoint and hand over the leases of its files (path → descriptor). This
        never waits and never fails: the agent also finds by itself what was admitted, and leases that it did not get
        stay with this process. Where a file has one already, the new one is let go.
        """
        self._check_fork()
        entries = item.entries if leases else {}
        with self._lock:
            held, new = self._leases.get(item.id, {}), {}
            for path, fd in leases.items():
                if path in held:
                    os.close(fd)
                else:
                    new[path] = LeasedFile(fd, item.file(path), entries[path].size, entries[path].mtime_ns)
            if new:
                self._leases[item.id] = held | new
            if self._connection is not None:
                self._send_admit(self._connection, item.id, new)

    def _send_admit(self, connection: AgentConnection, identity: str, leases: dict[str, LeasedFile]) -> None:
        batch: list[str] = []
        size = 0
        for path in [*leases, None]:
            # JSON may need 6 bytes for each character.
            size += 6 * len(path) + 3 if path is not None else protocol.MAX_FRAME
            if len(batch) == protocol.MAX_FDS or size > protocol.MAX_FRAME // 2:
                fds = [leases[item].fd for item in batch]
                self._send(connection, {"op": "admit", "id": identity, "guard": batch, "fds": len(fds)}, fds)
                batch, size = [], 0
            if path is not None:
                batch.append(path)

    def request(self, op: str, limit_s: float, **fields: Any) -> Message:
        """Ask, and wait for the answer; across a restart of the agent the question is asked again.

        Raises
        ------
        NoAgent
            None can be had now.
        AgentError
            It refused, or this client is closed.
        WaitTimeout
            No answer within ``limit_s`` seconds.
        """
        deadline = self.clock.monotonic() + limit_s
        self._check_fork()
        with self._lock:
            while True:
                connection = self._ensure()
                self._sequence += 1
                sequence = self._sequence
                self._answers[sequence] = None
                try:
                    self._send(connection, {"op": op, "seq": sequence, **fields}, [])
                    while self._answers[sequence] is None and self._connection is connection:
                        left = deadline - self.clock.monotonic()
                        if left <= 0:
                            raise WaitTimeout(
                                f"The agent (pid {connection.pid}) did not answer {op!r} within {limit_s:g} s"
                            )
                        with ended_by(self._wake_up):
                            go_on()  # It may have been ended before there was anything to wake up.
                            self._changed.wait(left)
                        go_on()
                    answer = self._answers[sequence]
                finally:
                    del self._answers[sequence]
                if answer is not None:
                    if "error" in answer:
                        raise AgentError(f"The agent refused {op!r}: {answer['error']}")
                    return answer

    def _wake_up(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def tell(self, op: str, **fields: Any) -> None:
        """Say something that needs no answer and may get lost: if there is a connection now, and all that was said
        before went out. This never waits, also not for a thread that is about to find an agent, and never fails.
        """
        self._check_fork()
        if self._lock.acquire(blocking=False):
            try:
                if self._connection is not None and not self._closed and not self._out:
                    self._send(self._connection, {"op": op, **fields}, [])
            finally:
                self._lock.release()

    def say_goodbye(self, *, over: bool, keys: Collection[str] | None = None) -> None:
        """Tell the agent that the attempt has ended, and whether the task is ``over`` with it; ``keys``: of checkpoints
        that its artifacts refer to, if that is known. No answer is waited for: an agent that still starts will read it.
        """
        self._check_fork()
        with self._lock:
            if self._connection is not None:
                self._send(
                    self._connection, {"op": "bye", "over": over, "keys": None if keys is None else list(keys)}, []
                )

    def close(self) -> None:
        """Disconnect; leases stay with the agent."""
        self._check_fork()
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
            for leases in self._leases.values():
                for item in leases.values():
                    os.close(item.fd)
            self._leases.clear()

    # -- connection ------------------------------------------------------------------------------------------------

    def _check_fork(self) -> None:
        """A forked child has copies of the descriptors but not the keeper's thread. It starts anew, with a lock of its
        own: the copied one may have been held by a thread that does not exist here.

        The copies are closed already (``forks``, ``lease``). Where something else than Python has forked, they are
        closed when the child ends.
        """
        if self._process != os.getpid():
            self._reset()

    def _ensure(self) -> AgentConnection:
        if self._closed:
            raise AgentError("The task's checkpoints are closed", hint="Save before the step ends")
        if self._connection is None:
            connection = self._connect()
            connection.sock.setblocking(False)
            self._connection, self._asked = connection, None
            self._out.clear()
            # First of all: whatever fails below, somebody must see the connection end.
            try:
                threading.Thread(target=self._keep, args=(connection,), name="async_ckpt-keeper", daemon=True).start()
            except RuntimeError as error:
                self._connection = None
                connection.sock.close()
                raise NoAgent(f"Nobody can keep a connection to the agent: {error}") from error
            self._sequence += 1
            hello = {"op": "hello", "v": protocol.VERSION, "seq": self._sequence, "pid": os.getpid()}
            self._send(connection, {**hello, "owner": self._owner, **self._hello}, [])
            for identity, leases in self._leases.items():
                self._send_admit(connection, identity, leases)
        return self._connection

    def _send(self, connection: AgentConnection, message: Message, fds: list[int]) -> None:
        self._out.append((protocol.encode(message), fds))
        with contextlib.suppress(ConnectionError):  # The keeper sees the same and acts on it.
            self._send_what_waits(connection)

    def _send_what_waits(self, connection: AgentConnection) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                sent = protocol.send(connection.sock, data, fds, socket.MSG_DONTWAIT)
            except ConnectionError:
                raise
            except OSError:
                return  # No room, or too many descriptors on their way: the keeper sends it as soon as it can.
            self._out.popleft()
            if sent < len(data):
                self._out.appendleft((data[sent:], []))

    # -- the keeper ------------------------------------------------------------------------------------------------

    def _keep(self, connection: AgentConnection) -> None:
        if not connection.pid:  # Nobody answers for leases but us.
            self._let_go_of_all()
        decoder = protocol.Decoder()
        poll = select.poll()
        try:
            while True:
                poll.register(connection.sock, select.POLLIN | (select.POLLOUT if self._out else 0))
                # A time limit, because a saver may queue a frame while we wait for input alone.
                if not poll.poll(100 if self._out else 1000) and not self._look_after(connection):
                    break
                if not self._pump(connection, decoder):
                    break
        except (OSError, ProtocolError):
            pass  # The connection is of no more use, and what follows is the same as for its end.
        finally:
            decoder.close()
            self._lost(connection)

    def _pump(self, connection: AgentConnection, decoder: protocol.Decoder) -> bool:
        with self._lock:
            self._send_what_waits(connection)
        try:
            data, fds = protocol.receive(connection.sock)
        except BlockingIOError:
            return True
        if data:
            if not connection.heard or self._asked is not None:
                self._on_answer(connection)
            connection.heard = self.clock.monotonic()
        for message, taken in decoder.feed(data, fds):
            for fd in taken:
                os.close(fd)
            self._receive(message)
        return bool(data)

    def _receive(self, message: Message) -> None:
        if message.get("push") not in (None, "unguard"):
            self._on_message(message)
            return
        needless: list[LeasedFile] = []
        with self._lock:
            if message.get("push") == "unguard":
                leases = self._leases.get(str(message.get("id")), {})
                needless = [leases.pop(path) for path in message.get("paths", []) if path in leases]
                if not leases:
                    self._leases.pop(str(message.get("id")), None)
            elif message.get("seq") == _KEEPERS:
                self._asked = None
            elif message.get("seq") in self._answers:
                self._answers[message["seq"]] = message
                self._changed.notify_all()
        # Not with the lock, which the next save's doorbell needs: the last close of a removed file gives its disk back,
        # and may wait for the file system's journal.
        for item in needless:
            os.close(item.fd)

    def _look_after(self, connection: AgentConnection) -> bool:
        """Nothing has come for a while: ask the agent something, to see that it is there. Where it does not answer and
        somebody waits for a lease, the file is made private here. Returns False where the connection is given up.
        """
        now = self.clock.monotonic()
        with self._lock:
            waited_for = [
                (identity, path)
                for identity, leases in self._leases.items()
                for path, item in leases.items()
                if lease.is_breaking(item.fd)
            ]
            is_due = self._owner and now - max(connection.heard, self._pinged) >= PING_S
            if self._asked is None and (waited_for or self._answers or is_due):
                self._asked = self._pinged = now
                self._send(connection, {"op": "state", "seq": _KEEPERS, "id": ""}, [])
            if self._asked is None or now - self._asked < AGENT_SILENT_S:
                return True
            overdue = [self._leases[identity].pop(path) for identity, path in waited_for]
        for item in overdue:
            _make_private_and_let_go(item)
        return not self._on_silence(connection)

    def _lost(self, connection: AgentConnection) -> None:
        with self._lock:
            connection.sock.close()
            if self._connection is not connection:
                return
            self._connection = None
            self._changed.notify_all()
            if self._closed or not (self._owner or self._leases):
                return
            if not self._losses.failed(self.clock.monotonic()) and self._try_to_connect():
                return
        self._let_go_of_all()
        # The task may save nothing for hours, and what it has saved is to be stored meanwhile.
        while self._owner:
            self.clock.sleep(max(LOOK_S, self._losses.left_s(self.clock.monotonic())))
            with self._lock:
                if self._closed or self._connection is not None or self._try_to_connect():
                    return

    def _try_to_connect(self) -> bool:
        try:
            self._ensure()
        except CheckpointError:
            return False
        return True

    def _let_go_of_all(self) -> None:
        """Nobody but this process can answer for leases: each leased file is made private now."""
        with self._lock:
            leases, self._leases = self._leases, {}
        for held in leases.values():
            for item in held.values():
                _make_private_and_let_go(item)


def _make_private_and_let_go(item: LeasedFile) -> None:
    try:
        make_private(item.path, item.fd, item.size, item.mtime_ns)
    except SnapshotError:
        pass  # The link is gone, so recovery reports the checkpoint as torn. There is nobody to tell here.
    finally:
        lease.release(item.fd)
        os.close(item.fd)


def _open_descriptors(most: int) -> int:
    """How many this process has of those it may have."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return most

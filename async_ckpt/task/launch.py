"""Finds the agent of a spool, or starts one, such that there are never two and nobody waits for the start.

Whoever starts an agent makes its listening socket and takes its lock first, and hands both over: a client can
connect, and queue frames and leases, before the agent has run its first instruction. The lease signal is blocked in
it from the start, by inheritance. Order: lock, socket, process, ``agent.pid``, and last the socket's name (``naming``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading

from ..agent.child import command, writable_log
from ..agent.naming import name_of, name_socket, open_socket
from ..capture.lease import LEASE_SIGNAL
from ..config import CALM_S, FIRST_PAUSE_S, HUNG_HURRY_S, LAST_CALL_PAUSE_S, RESTARTS_AT_ONCE, Config
from ..errors import CheckpointError, NoAgent, SpoolError, os_hint, os_reason
from ..ipc import protocol
from ..ipc.client import AgentConnection
from ..spool.spool import Spool
from ..spool.upkeep import is_held
from ..system import forks
from ..system.backoff import Backoff
from ..system.clock import REAL_CLOCK, Clock
from ..system.files import locked, try_lock, unlock, wait_for
from .watchdog import Watchdog

log = logging.getLogger(__name__)

UPLOADERS = ("process", "thread")

#: How long a new agent waits for the lock of one that has ended, in multiples of the limit for an answer.
_LOCK_WAITS = 3

#: None of these is ignored in the agent because whoever started the flow ignored it (nohup, a shell's background).
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

#: Longest line of a log that is quoted, in bytes.
_LINE_BYTES = 400


class Launcher:
    """Connects to a spool's agent and starts it where there is none.

    Where no agent can be started, or none lives long enough to answer, for ``agent_patience_s`` seconds, it is a thread
    of this process.

    Parameters
    ----------
    uploader : str
        ``"process"`` or ``"thread"``: what to start.
    """

    def __init__(self, spool: Spool, config: Config, uploader: str, clock: Clock = REAL_CLOCK) -> None:
        self._clock = clock
        self._spool, self._config, self._uploader = spool, config, uploader
        self._restarts = Backoff(RESTARTS_AT_ONCE, FIRST_PAUSE_S, config.agent_pause_s, CALM_S)
        #: The same for agents in a thread: the pauses of processes do not hold up the first of them.
        self._restarts_here = Backoff(RESTARTS_AT_ONCE, FIRST_PAUSE_S, config.agent_pause_s, CALM_S)
        self._watchdog = Watchdog(spool.directory, config)
        #: Since when no agent that was started here has answered, or none could be started (monotonic seconds); why.
        self._in_vain: float | None = None
        self._why = ""
        self._has_said = False
        self._has_waited = False
        self._thread: threading.Thread | None = None
        self._children: set[int] = set()

    def connect(self) -> AgentConnection:
        """A connection to the agent.

        Raises
        ------
        NoAgent
            None runs and none can be started now; or one holds the spool and does not answer.
        """
        try:
            while True:
                self._spool.mend()
                # An agent may die, or end its work and leave, in the moment in which it is found.
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                    return self._find() or self._start()
                os.stat(self._spool.directory)
        except SpoolError as error:
            raise NoAgent(str(error), where=error.where) from error
        except OSError as error:
            self._why = os_reason(error)
            raise NoAgent(
                f"The agent cannot be started: {self._why}", where=self._spool.directory, hint=os_hint(error)
            ) from error

    def on_answer(self, link: AgentConnection) -> None:
        """The agent has said its first word to us, or has been silent and is not any more."""
        self._in_vain, self._has_waited, self._has_said = None, False, False
        self._watchdog.forgive(link.pid)

    def on_silence(self, link: AgentConnection) -> bool:
        """It owes us an answer; to be called about once a second. Returns whether it is of no use any more."""
        return link.pid > 0 and self._watchdog.look(link.pid, self._clock.monotonic())

    def hurry(self) -> None:
        """The machine is about to go: nothing is waited for that can be helped."""
        self._watchdog.hurry = True

    def _find(self) -> AgentConnection | None:
        path = self._spool.path("agent.sock")
        try:
            sock = protocol.connect(path, self._config.reply_timeout_s)
        except OSError:
            return None
        try:
            with open(self._spool.path("agent.pid"), "rb") as file:
                pid = int(file.read())
        except (OSError, ValueError):
            pid = -1
        if pid < 0 or self._watchdog.is_undead(pid):
            sock.close()
            return None
        return AgentConnection(sock, pid)

    def _start(self) -> AgentConnection:
        now = self._clock.monotonic()
        patience_s = HUNG_HURRY_S if self._watchdog.hurry else self._config.agent_patience_s
        is_here = self._uploader == "thread" or (self._in_vain is not None and now - self._in_vain >= patience_s)
        restarts = self._restarts_here if is_here else self._restarts
        left = restarts.left_s(now, LAST_CALL_PAUSE_S if self._watchdog.hurry else self._config.agent_pause_s)
        if left:
            said = self._why or _last_line(self._spool.path("agent.log"))
            raise NoAgent(
                f"The agent has ended {restarts.count} times in short time, and is started again in {left:.1f} s"
                + (f"; the last it said: {said}" if said else ""),
                where=self._spool.path("agent.log"),
                hint="Its log says more; what was saved stays in the spool and is uploaded by the next agent",
            )
        with locked(self._spool.path("launch.lock"), timeout_s=self._config.reply_timeout_s):
            link = self._find()
            if link is not None:
                return link
            self.reap()
            lock = self._take_lock()
            if isinstance(lock, AgentConnection):
                return lock
            restarts.failed(now)  # Until it has lived for long.
            if self._in_vain is None:
                self._in_vain = now
            try:
                listening = open_socket(self._spool)
            except BaseException:
                forks.close_lock(lock)
                raise
            path = self._spool.path(name_of(listening))
            why, self._why = self._why, ""  # From here on that of the new one.
            pid = self._start_thread(lock, listening) if is_here else self._spawn(lock, listening)
            # Once until an agent has answered, however often one is tried, and whatever it says.
            if is_here and self._uploader != "thread" and not self._has_said:
                self._has_said = True
                self._say_that_it_is_here(why or _last_line(self._spool.path("agent.log")))
            with contextlib.suppress(OSError):  # The disk may be full. The agent tries it as well, again and again.
                name_socket(self._spool, os.path.basename(path), pid)
            return AgentConnection(protocol.connect(path, self._config.reply_timeout_s), pid, fresh=True)

    def _say_that_it_is_here(self, why: str) -> None:
        log.warning(
            f"No agent could be started{f' ({why})' if why else ''}: this process uploads by itself meanwhile. "
            "Captures are copies until there is one again"
        )

    def _take_lock(self) -> int | AgentConnection:
        """The lock of the spool's agent; or the agent itself, if the one that holds it turns up."""
        path = self._spool.path("agent.lock")
        if self._watchdog.is_lost(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        forks.keep_lock_from_children(fd)
        found: list[AgentConnection] = []

        def free() -> bool:
            # The file may have been removed under an agent that lives, and is a new one.
            if try_lock(fd):
                if self._watchdog.has_undead() or not is_held(self._spool.directory):
                    return True
                unlock(fd)
            link = self._find()
            if link is not None:
                found.append(link)
            else:
                self._watchdog.look_for(self._clock.monotonic())
            return bool(found)

        try:
            # An agent that was killed holds the lock until the kernel is done with its last call: to unlink a large
            # file may take seconds. This is waited for once; later callers wait by themselves.
            wait_for(free, 0.0 if self._has_waited else _LOCK_WAITS * self._config.reply_timeout_s, path)
        except TimeoutError:
            self._has_waited = True
            forks.close_lock(fd)
            raise NoAgent(
                "Another agent holds this spool and does not answer", where=path,
                hint=f"See who it is with 'fuser {path}' and end it; what was saved stays in the spool",
            ) from None  # fmt: skip
        except BaseException:
            forks.close_lock(fd)
            raise
        if found:
            forks.close_lock(fd)
            return found[0]
        self._has_waited = False
        if os.fstat(fd).st_ino != os.stat(path).st_ino:
            forks.close_lock(fd)
            raise NoAgent("The spool was removed by its last agent in this moment", where=self._spool.directory)
        return fd

    def _spawn(self, lock: int, listening: socket.socket) -> int:
        # Numbers above both, so that neither dup2 overwrites the other's source, and both before the standard streams,
        # which may have the numbers of these here.
        highest = max(lock, listening.fileno(), 2)
        numbers = (highest + 1, highest + 2)
        actions = [
            (os.POSIX_SPAWN_DUP2, lock, numbers[0]),
            (os.POSIX_SPAWN_DUP2, listening.fileno(), numbers[1]),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, writable_log(self._spool), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        arguments = command("agent", *map(str, numbers), self._spool.directory)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            with listening:
                pid = os.posix_spawn(
                    sys.executable, arguments, environment,
                    file_actions=actions, setsid=True, setsigmask=[LEASE_SIGNAL], setsigdef=_SIGNALS,
                )  # fmt: skip
                self._children.add(pid)
                return pid
        except FileNotFoundError as error:  # Not of the spool: nobody makes it again.
            raise OSError(errno.ENOEXEC, f"there is no {sys.executable} any more") from error
        finally:
            forks.close_lock(lock)

    def _start_thread(self, lock: int, listening: socket.socket) -> int:
        from ..agent.agent import Agent

        def run() -> None:
            try:
                is_temporary = self._uploader != "thread"
                Agent(self._spool, listening, self._config, guarded=False, temporary=is_temporary).run()
            except (OSError, RuntimeError, CheckpointError) as error:  # Whoever asks it something starts another one.
                self._why = f"{type(error).__name__}: {error}"
            finally:
                listening.close()
                forks.close_lock(lock)

        self._thread = threading.Thread(target=run, name="async_ckpt-agent", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            listening.close()
            forks.close_lock(lock)
            raise OSError(errno.EAGAIN, str(error)) from error
        return 0

    def reap(self) -> None:
        """Collect agents of ours that ended, so that they do not stay as zombies."""
        for pid in list(self._children):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # Somebody else's os.wait() got it.
                ended = pid
            if ended:
                self._children.discard(pid)

    def join(self, timeout_s: float) -> None:
        """Wait for an agent in a thread to end; a process is not waited for."""
        if self._thread is not None:
            self._thread.join(timeout_s)


def _last_line(path: str) -> str:
    """What stands last in a log; empty where there is nothing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _LINE_BYTES, 0))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""

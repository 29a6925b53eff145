"""Finds the agent of a spool, or starts one, such that there are never two and nobody waits for the start.

Whoever starts an agent makes its listening socket and takes its lock first, and hands both over: a client can
connect, and queue frames and leases, before the agent has run its first instruction. The lease signal is blocked in
it from the start, by inheritance. Order: lock, socket, process, ``agent.pid``, and last the socket's name (``naming``).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque

from .. import forks
from ..config import Config
from ..errors import AgentError, SpoolError, os_hint, os_reason
from ..files import locked, try_lock, unlock, wait_for
from ..ipc import protocol
from ..ipc.client import Link
from ..snapshot.lease import LEASE_SIGNAL
from ..spool.spool import Spool
from ..spool.upkeep import is_held
from .naming import name_of, name_socket, open_socket

UPLOADERS = ("process", "thread")

#: So many starts within so many seconds are a crash loop, and the last.
_MAX_STARTS, _WINDOW_S = 6, 30.0

#: So many limits of an answer a new agent waits for the lock of one that has ended.
_LOCK_WAITS = 3

#: None of these is ignored in the agent because whoever started the flow ignored it (nohup, a shell's background).
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Launcher:
    """Connects to a spool's agent and starts it where there is none.

    Parameters
    ----------
    uploader : str
        ``"process"`` or ``"thread"``: what to start.
    """

    def __init__(self, spool: Spool, config: Config, uploader: str) -> None:
        self._spool, self._config, self._uploader = spool, config, uploader
        self._starts: deque[float] = deque(maxlen=_MAX_STARTS)
        self._thread: threading.Thread | None = None
        self._children: set[int] = set()

    def connect(self) -> Link:
        """A connection to the agent.

        Raises
        ------
        AgentError
            None runs and none can be started; or one holds the spool and does not answer.
        """
        try:
            while True:
                self._spool.mend()
                # One that died, or has drained and left, in the moment in which it was found; too many are an error.
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                    return self._find() or self._start()
                os.stat(self._spool.directory)
        except SpoolError as error:
            raise AgentError(str(error), where=error.where) from error
        except OSError as error:
            raise AgentError(
                f"The agent cannot be started: {os_reason(error)}", where=self._spool.directory, hint=os_hint(error)
            ) from error

    def _find(self) -> Link | None:
        path = self._spool.path("agent.sock")
        try:
            sock = protocol.connect(path, self._config.reply_timeout_s)
        except OSError:
            return None
        try:
            with open(self._spool.path("agent.pid"), "rb") as file:
                return Link(sock, int(file.read()))
        except (OSError, ValueError):
            sock.close()
            return None

    def _start(self) -> Link:
        now = time.monotonic()
        if len(self._starts) == _MAX_STARTS and now - self._starts[0] < _WINDOW_S:
            raise AgentError(
                f"The agent died {_MAX_STARTS} times within {_WINDOW_S:g} s", where=self._spool.path("agent.log"),
                hint="Its log says why; what was saved stays in the spool and is uploaded by the next agent",
            )  # fmt: skip
        with locked(self._spool.path("launch.lock"), timeout_s=self._config.reply_timeout_s):
            link = self._find()
            if link is not None:
                return link
            self._starts.append(now)
            self.reap()
            lock = self._take_lock()
            if isinstance(lock, Link):
                return lock
            listening = open_socket(self._spool)
            name = name_of(listening)
            start = self._spawn if self._uploader == "process" else self._start_thread
            pid = start(lock, listening)
            name_socket(self._spool, name, pid)
            return Link(protocol.connect(self._spool.path("agent.sock"), self._config.reply_timeout_s), pid, fresh=True)

    def _take_lock(self) -> int | Link:
        """The lock of the spool's agent; or the agent itself, if the one that holds it turns up."""
        path = self._spool.path("agent.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        forks.keep_lock_from_children(fd)
        found: list[Link] = []

        def free() -> bool:
            # The file may have been removed under an agent that lives, and is a new one.
            if try_lock(fd):
                if not is_held(self._spool.directory):
                    return True
                unlock(fd)
            link = self._find()
            if link is not None:
                found.append(link)
            return bool(found)

        try:
            # One that was killed holds it until the kernel is done with what it did: unlinking may take it seconds.
            wait_for(free, _LOCK_WAITS * self._config.reply_timeout_s, path)
        except TimeoutError:
            forks.close_lock(fd)
            raise AgentError(
                "Another agent holds this spool and does not answer", where=path,
                hint=f"See who it is with 'fuser {path}' and end it; what was saved stays in the spool",
            ) from None  # fmt: skip
        if found:
            forks.close_lock(fd)
            return found[0]
        if os.fstat(fd).st_ino != os.stat(path).st_ino:
            forks.close_lock(fd)
            raise AgentError("The spool was removed by its last agent in this moment", where=self._spool.directory)
        return fd

    def _spawn(self, lock: int, listening: socket.socket) -> int:
        # Numbers above both, so that neither dup2 overwrites the other's source, and both before the standard streams,
        # which may have the numbers of these here.
        highest = max(lock, listening.fileno(), 2)
        numbers = (highest + 1, highest + 2)
        log = self._spool.path("agent.log")
        actions = [
            (os.POSIX_SPAWN_DUP2, lock, numbers[0]),
            (os.POSIX_SPAWN_DUP2, listening.fileno(), numbers[1]),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        arguments = ["agent", str(numbers[0]), str(numbers[1]), self._spool.directory]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            with listening:
                pid = os.posix_spawn(
                    sys.executable, [*bootstrap(heavy=False), *arguments], environment,
                    file_actions=actions, setsid=True, setsigmask=[LEASE_SIGNAL], setsigdef=_SIGNALS,
                )  # fmt: skip
                self._children.add(pid)
                return pid
        finally:
            forks.close_lock(lock)

    def _start_thread(self, lock: int, listening: socket.socket) -> int:
        from .agent import Agent
        from .plane import WorkerThread
        from .saves import SaverProcess

        saver = bootstrap(heavy=True, module="saver")

        def run() -> None:
            try:
                Agent(
                    self._spool, listening, lambda: WorkerThread(self._spool, self._config),
                    lambda: SaverProcess(self._spool, saver), self._config, guarded=False,
                ).run()  # fmt: skip
            finally:
                forks.close_lock(lock)

        self._thread = threading.Thread(target=run, name="async_ckpt-agent", daemon=True)
        self._thread.start()
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


def bootstrap(*, heavy: bool, module: str = "agent.__main__") -> list[str]:
    """The command that runs ``main`` of one of our modules with this interpreter.

    ``heavy``: with the environment's packages (the data plane); else with the standard library and this package alone.
    """
    # PYTHONPATH is the task's sys.path; '' would let files in the working directory shadow modules.
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if p] + [{_PACKAGE_ROOT!r}]; "
        f"from async_ckpt.{module} import main; main(sys.argv[1:])"
    )
    # -I -S: quickly, and whatever state the environment is in.
    return [sys.executable, *([] if heavy else ["-I", "-S"]), "-c", code]


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: every lease is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ignore_terminal_signals() -> None:
    """Ctrl-C and a closed terminal concern the task; a SIGTERM is answered by going on until we are killed: every
    second of it may bring one more checkpoint into the store.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""A child process of the agent: started when there is work for it, talked to over a socket pair, and noticed when it
dies. The agent has two: the uploader, which uploads (``upload/process.py``), and the saver (``task/socket_saver.py``).

Light: nothing that they need is imported here.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from ..config import CHILD_STOP_S, FIRST_PAUSE_S, UPLOADER_START_S, Config
from ..errors import ProtocolError, os_reason
from ..ipc import protocol
from ..ipc.protocol import Message
from ..spool.spool import Spool
from ..system.backoff import Backoff
from ..system.clock import Clock
from ..system.files import occupy_standard_streams
from ..system.processes import Stillness

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

#: The module in which each role begins, with its ``main``.
_MODULES = {"agent": "agent.__main__", "uploader": "upload.process", "saver": "task.socket_saver"}


class Running(Protocol):
    """A child that runs: ``sock`` is the agent's end of the channel, ``pid`` its process."""

    sock: socket.socket

    @property
    def pid(self) -> int: ...
    def stop(self) -> None: ...


class Child:
    """One child of a kind at a time: when it dies, another one is started, after longer and longer pauses.

    Parameters
    ----------
    selector : selectors.BaseSelector
        The agent's; ``key.data(mask)`` is called when the channel is readable.
    start : callable
        Starts a child.
    config : Config
        A child that takes no message for ``reply_timeout_s`` is of no use.
    on_message : callable
        ``(message)``.
    on_death : callable
        ``(spoke)``: the child is gone and what it was told is to be told again; whether it had said anything.
    on_trouble : callable
        Gets what is said of the child, without a name, when none can be started, none lives until its first word, or
        one that lives was of no use and was ended.
    start_here : callable or None
        Starts one in a thread of this process, for where none can be started for ``agent_patience_s``.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        start: Callable[[], Running],
        config: Config,
        clock: Clock,
        on_message: Callable[[Message], None],
        on_death: Callable[[bool], None],
        on_trouble: Callable[[str], None] = lambda why: None,
        start_here: Callable[[], Running] | None = None,
    ) -> None:
        self._selector, self._start, self._start_here, self._config = selector, start, start_here, config
        self._clock = clock
        self._on_message, self._on_death, self._on_trouble = on_message, on_death, on_trouble
        self._running: Running | None = None
        self._decoder = protocol.Decoder()
        self._out = bytearray()
        self._taken = 0.0
        self._on_event: Callable[[int], None] = lambda mask: None
        self._restarts = Backoff(1, FIRST_PAUSE_S, config.agent_pause_s)
        #: Since when none has said anything (monotonic seconds), and why not.
        self._in_vain: float | None = None
        self.trouble = ""
        self._idle, self._bytes_per_s = True, 0
        self._started, self._heard = 0.0, False

    @property
    def is_awake(self) -> bool:
        """Whether there is a child that has said something, or has had the time to."""
        has_had_time = self._clock.monotonic() - self._started >= UPLOADER_START_S
        return self._running is not None and (self._heard or has_had_time)

    @property
    def has_spoken(self) -> bool:
        """Whether there is a child that has said something: it does what it is told to."""
        return self._running is not None and self._heard

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    @property
    def in_vain_s(self) -> float:
        """For how many seconds no child could be had that says anything."""
        return self._clock.monotonic() - self._in_vain if self._in_vain is not None else 0.0

    def ensure(self) -> bool:
        """Start a child if there is none; False while there is a pause, or none can be started."""
        if self._running is None and not self._restarts.left_s(self._clock.monotonic()):
            is_here = self._start_here is not None and self.in_vain_s >= self._config.agent_patience_s
            start = self._start_here if is_here and self._start_here is not None else self._start
            try:
                running = self._running = start()
            except (OSError, RuntimeError) as error:  # No processes, memory, descriptors, threads, interpreter.
                where = getattr(error, "filename", None)
                why = os_reason(error) if isinstance(error, OSError) else str(error)
                self._failed(f"{why}: {where}" if where else why)
                return False
            self._started, self._heard = self._clock.monotonic(), False
            self._watched = Stillness(running.pid)
            self._decoder = protocol.Decoder()
            running.sock.setblocking(False)
            # Bound to this child: it may have been given up by an earlier event of the same round.
            self._on_event = lambda mask: self._pump(running, mask)
            self._selector.register(running.sock, selectors.EVENT_READ, self._on_event)
            self.tell({"op": "priority", "idle": self._idle})
            if self._bytes_per_s:
                self.tell({"op": "rate", "bytes_per_s": self._bytes_per_s})
        return self._running is not None

    def _failed(self, why: str) -> None:
        """No child could be started, or it ended without a word."""
        now = self._clock.monotonic()
        self._restarts.failed(now)
        if self._in_vain is None:
            self._in_vain = now
        self.trouble = why
        self._on_trouble(f"cannot be had: {why}")

    def tell(self, *messages: Message) -> None:
        """Send messages, as soon as the child takes them: one that still starts takes none, and is not waited for."""
        if self._running is not None:
            if not self._out:
                self._taken = self._clock.monotonic()
            for message in messages:
                self._out += protocol.encode(message)
            self._send(self._running)

    def tick(self, *, is_busy: bool = False) -> None:
        """Give up a child that takes no messages, one that is stopped, and one that never runs.

        Parameters
        ----------
        is_busy : bool
            It has something in hand of which it tells several times a second, were it only that there is nothing new.
        """
        now = self._clock.monotonic()
        if not self._idle and not self._heard:
            self._prefer()  # It begins as an idle one, and cannot be told before it has begun.
        if self._out and now - self._taken > self._config.reply_timeout_s:
            self._on_trouble(f"took no message for {self._config.reply_timeout_s:g} s and was ended")
            self._died()
        elif self._running is not None and self._running.pid != os.getpid() and now - self._watched.looked >= 1.0:
            self._watched.look(now)
            if self._watched.hangs(self._config.hung_s) and (is_busy or self._watched.state in ("T", "t")):
                self._on_trouble(f"hung (pid {self._running.pid}, state {self._watched.state}) and was ended")
                self._died()

    def _send(self, running: Running) -> None:
        try:
            sent = running.sock.send(self._out, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._died()
            return
        if sent:
            self._taken = self._clock.monotonic()
            del self._out[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._selector.get_key(running.sock).events != events:
            self._selector.modify(running.sock, events, self._on_event)

    def set_priority(self, *, idle: bool) -> None:
        """Whether the child should take only the CPU time that nobody else wants."""
        if idle != self._idle:
            self._idle = idle
            if not idle:
                self._prefer()
            self.tell({"op": "priority", "idle": idle})

    def set_rate(self, bytes_per_s: int) -> None:
        """How many bytes a second the child may send; 0: as many as it can."""
        if bytes_per_s != self._bytes_per_s:
            self._bytes_per_s = bytes_per_s
            self.tell({"op": "rate", "bytes_per_s": bytes_per_s})

    def _prefer(self) -> None:
        """Give the child its share of the CPU: on a busy machine an idle one would not come to hear that it has it."""
        if self._running is not None and self._running.pid != os.getpid():
            with contextlib.suppress(OSError):
                os.sched_setscheduler(self._running.pid, os.SCHED_OTHER, os.sched_param(0))

    def is_well(self) -> None:
        """Something was finished: earlier deaths do not count any more."""
        self._restarts.reset()

    def _pump(self, running: Running, mask: int) -> None:
        if running is self._running and mask & selectors.EVENT_WRITE:
            self._send(running)
        if running is self._running and mask & selectors.EVENT_READ:
            self._read(running)

    def _read(self, running: Running) -> None:
        try:
            data, _ = protocol.receive(running.sock)
            messages = self._decoder.feed(data, [])
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            data, messages = b"", []
        if messages and not self._heard:
            self._heard, self._in_vain, self.trouble = True, None, ""
        for message, _ in messages:
            self._on_message(message)
        if not data:
            self._died()

    def _died(self) -> None:
        if self._running is None:
            return
        self.stop()
        if self._heard:
            self._restarts.failed(self._clock.monotonic())
        else:
            self._failed("it ended without a word")
        self._on_death(self._heard)

    def renew(self) -> None:
        """End the child, if there is one; the next one is told again what this one had not done."""
        if self._running is not None:
            self.stop()
            self._on_death(False)

    def stop(self) -> None:
        """End the child; it aborts what it has under way."""
        if self._running is not None:
            running, self._running = self._running, None
            self._selector.unregister(running.sock)
            self._out.clear()
            running.stop()


class ChildProcess:
    """A child in a process of its own: an ``uploader``, or a ``saver``."""

    def __init__(self, spool: Spool, role: str) -> None:
        occupy_standard_streams()  # The child has its own, in the place of whatever has these numbers.
        self.sock, theirs = socket.socketpair()
        try:
            with theirs, open(writable_log(spool), "ab") as log:
                self._process = subprocess.Popen(
                    command(role, str(theirs.fileno()), spool.directory),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
                )  # fmt: skip
        except BaseException:
            self.sock.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self.sock.close()
        try:
            self._process.wait(timeout=CHILD_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # A process in an uninterruptible wait (a hung network file system) is left to its fate.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=CHILD_STOP_S)


class ChildThread:
    """The uploader, in a thread of this process."""

    def __init__(self, spool: Spool, config: Config) -> None:
        self.sock, theirs = socket.socketpair()
        self.pid = os.getpid()

        def run() -> None:
            import anyio

            from ..upload.process import serve

            with theirs:
                anyio.run(serve, theirs, spool, config)

        self._thread = threading.Thread(target=run, name="async_ckpt-uploader", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.sock.close()
            theirs.close()
            raise

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self._thread.join(timeout=CHILD_STOP_S)


def command(role: str, *arguments: str) -> list[str]:
    """The command that runs the agent or a child of it with this interpreter."""
    # PYTHONPATH is the task's sys.path; '' would let files in the working directory shadow modules.
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if p] + [{_PACKAGE_ROOT!r}]; "
        f"from async_ckpt.{_MODULES[role]} import main; main(sys.argv[2:])"
    )
    # -I -S: the agent needs the standard library and this package alone. It starts quickly, and whatever state the
    # environment is in.
    return [sys.executable, *(["-I", "-S"] if role == "agent" else []), "-c", code, role, *arguments]


def writable_log(spool: Spool) -> str:
    """Where an agent and its children print, for people: the spool's log, or nowhere, as that cannot be opened now."""
    path = spool.path("agent.log")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError:
        return os.devnull
    return path

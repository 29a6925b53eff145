"""The control plane: one loop that admits, orders, journals and answers. It imports nothing heavy and never waits for
a store.

The agent holds the spool's lock (a descriptor it was given) for as long as it lives, so there is one per spool. It
works for an *owner*, the task's process; when the owner is gone (its connection ends, or its process), the agent
*drains*: it goes on until everything is committed or its deadline has passed, and exits. When all is committed it
removes the spool.

What it does lies in its parts. Three are large, and work on the others (``parts.py``): ``checkpoints`` (how they come
in and end), ``dispatcher`` (what the uploader is told, and says), ``requests`` (what clients say, and are answered).
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import sys

from ..config import AGENT_TICK_S, CALM_S, LAST_CALL_PAUSE_S, SHORT_FIRST_S, SHORT_MOST_S, SHORT_TIMES, Config
from ..ipc.server import Server
from ..spool import recovery
from ..spool.journal import FINAL, RELEASED, Journal
from ..spool.spool import Spool
from ..system.backoff import Backoff
from ..system.clock import REAL_CLOCK, Clock
from .annotating import Annotating
from .card import Card
from .checkpoints import Checkpoints
from .child import Child, ChildProcess, ChildThread, Running
from .deadline import LastCall
from .deaths import Deaths
from .dispatcher import Dispatcher
from .exposure import Exposure
from .housekeeping import Housekeeping
from .leases import Leases
from .owners import Owners
from .pace import Pace
from .parts import Parts
from .queue import Queue
from .remover import Remover
from .requests import Requests
from .retaining import Retaining
from .slowdown import Pressure, Slowdown
from .socket_saves import SocketSaves
from .starts import Starts
from .throughput import Throughput
from .unreachable import Unreachable


class Agent:
    """See the module's docstring.

    Parameters
    ----------
    spool : Spool
        Whose lock the caller holds.
    listening : socket.socket
        Bound and listening at ``agent.sock``.
    guarded : bool
        Whether this is a process of its own, which holds leases and has children that upload; else all is in threads.
    clock : Clock
        The world's, but in a simulation.
    temporary : bool
        It stands in for one that could not be started, and ends after a while, when it has nothing to do: whoever needs
        one tries again.
    """

    def __init__(
        self,
        spool: Spool,
        listening: socket.socket,
        config: Config,
        *,
        guarded: bool,
        temporary: bool = False,
        clock: Clock = REAL_CLOCK,
    ) -> None:
        self.spool, self.config, self.clock, self._guarded = spool, config, clock, guarded
        self._gives_way_at = clock.monotonic() + CALM_S if temporary else math.inf
        self._shortage = Backoff(0, SHORT_FIRST_S, SHORT_MOST_S)
        self._gone: str | None = None
        self._next_scan = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda _: self._on_wake())
        self._server = Server(
            listening, self._selector, lambda *said: self.requests.on_message(*said),
            lambda connection: self.requests.on_close(connection),
        )  # fmt: skip
        self.queue = Queue(config.max_uploads)
        # First of all: nobody is to look into what does not answer.
        unreachable = Unreachable(spool, self.queue, config, clock)
        self.journal = Journal(
            spool.path("journal"), spool.task.attempt, set(spool.records.ids()),
            lambda why: self.checkpoints.remember(why),
        )  # fmt: skip
        self.house = Housekeeping(spool, config, self.journal, self._server, os.getpid() if guarded else 0)
        self.leases = Leases(spool, self.journal, self._server, self._wake, config, guarded=guarded)
        self.remover = Remover(spool, self._wake, lambda why: self.checkpoints.remember(why))
        self.uploader = Child(
            self._selector, (lambda: ChildProcess(spool, "uploader")) if guarded else self._start_uploader_here, config,
            clock, lambda message: self.dispatcher.on_message(message), lambda spoke: self.dispatcher.on_death(spoke),
            lambda why: self.dispatcher.on_trouble(why), self._start_uploader_here,
        )  # fmt: skip
        self.owners = Owners(config, spool.task, lambda: self.dispatcher.gather_in(config.collective_grace_s), clock)
        self.starts = Starts(spool, self.uploader, self.owners.say, clock)
        self.socket_saves = SocketSaves(self._selector, spool, config, clock)
        self.deaths = Deaths(self.queue, self.journal, config, spool.path("agent.log"), is_own=guarded)
        self.throughput = Throughput(clock)
        self.pace = Pace(Slowdown(config.max_slowdown, Pressure()), config.collective_timeout_s / 2)
        self.last_call = LastCall(
            self.queue, self.journal, self.throughput, self.uploader, config, self.owners.tell, clock
        )
        self.exposure = Exposure(recovery.read(spool.directory), clock, config.max_exposure_s)
        self.card = Card(spool, config, self.uploader, self.owners, clock, lambda why: self.checkpoints.remember(why))
        self.annotating = Annotating(spool.annotations, self.queue, self.uploader, self.card)
        self.retaining = Retaining(spool, config, self.uploader, self.owners)
        parts = Parts(
            spool, config, clock, self.queue, unreachable, self.journal, self.house, self.leases, self.remover,
            self.uploader, self.owners, self.starts, self.socket_saves, self.deaths, self.throughput, self.pace,
            self.last_call, self.exposure, self.card,
            self.retaining, self.annotating,
        )  # fmt: skip
        self.checkpoints = Checkpoints(parts)
        self.dispatcher = Dispatcher(parts, self.checkpoints)
        self.requests = Requests(parts, self.checkpoints, self.dispatcher)
        self.checkpoints.recover()

    def _start_uploader_here(self) -> Running:
        """One in a thread of this process, with the packages that an uploader's process would have."""
        if self._guarded:  # The task's process has them.
            environment = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            sys.path += [path for path in environment if path and path not in sys.path]
        return ChildThread(self.spool, self.config)

    # -- life ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until there is nothing left to do for anybody."""
        try:
            while not self._round():
                pass
        finally:
            self._close()

    def _round(self) -> bool:
        """Do what there is to do now. Returns whether that was all."""
        try:
            if (self._is_over() and self._leave()) or self._gives_way():
                return True
            for key, mask in self._selector.select(AGENT_TICK_S):
                key.data(mask)
            self._tick()
            self._shortage.reset()
        except (OSError, MemoryError) as error:
            # No descriptors, memory or disk for a moment. What was half done is begun anew, as after a death; leases
            # are answered meanwhile. Where it does not pass, a new agent may be better off.
            if self._shortage.count >= SHORT_TIMES:
                raise
            why = f"{type(error).__name__}: {error}"
            self.owners.say(f"The agent lacks something, and goes on as well as it can: {why}")
            self.clock.sleep(self._shortage.failed(self.clock.monotonic()))
            self.uploader.renew()
        return False

    def _is_over(self) -> bool:
        now = self.clock.monotonic()
        if self.owners.are_expected(now):
            return False
        idle = self.remover.idle and not self.socket_saves.count and self.owners.untold_death is None
        done = not self.queue.pending and idle and not self.checkpoints.has_news()
        done = done and self.annotating.is_done and self.retaining.is_done and self.card.is_done(now)
        return done or self.owners.have_been_gone_for_long(now)

    def _gives_way(self) -> bool:
        return self.clock.monotonic() >= self._gives_way_at and not self.queue.pending and self.remover.idle

    def _leave(self) -> bool:
        """Take the spool away if nothing in it is needed any more. False if something was admitted in this moment.

        What failed is told at the end of a step: an agent whose task was killed leaves it to the next attempt's.
        """
        if self.queue.pending or ((self.spool.records.ids() or self.queue.failed()) and not self.owners.over):
            return True
        needless = FINAL if self.owners.over else RELEASED
        try:
            self._gone = self.spool.set_aside({job.id for job in self.queue.jobs.values() if job.state in needless})
        except FileNotFoundError:
            return True  # Somebody removed it; there is nothing to take away.
        return self._gone is not None

    def _close(self) -> None:
        self.socket_saves.stop()
        self.uploader.stop()
        for job in self.queue.uploading:
            self.deaths.put_down(job.id)
        self.remover.stop()
        self.leases.stop()
        self.journal.close()
        if self._gone is not None:
            self.spool.remove(self._gone)
        self.house.stop()
        self._server.close()
        self._selector.unregister(self._wake_read)
        self._wake_read.close()
        self._wake_write.close()
        self._selector.close()

    def _tick(self) -> None:
        now = self.clock.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + self.config.rescan_s
            self.checkpoints.scan()
            if not os.path.exists(self.spool.path(recovery.NAME)):
                self.exposure.is_missing()
            if warning := self.requests.exposure_warning():
                self.owners.tell({"push": "notice", "why": warning})
            # A node whose gang has lost its first goes on for nothing: it waits for the others no longer.
            if self.owners.has_lost_leader():
                self.dispatcher.gather_in(self.config.collective_grace_s)
                self.starts.give_up("The first node of the gang is gone")
        self.journal.catch_up()
        self.queue.resume_due(now, LAST_CALL_PAUSE_S if self.last_call.is_near else math.inf)
        self.owners.look()
        self._server.resume()
        self.uploader.tick(is_busy=bool(self.queue.uploading))
        self.socket_saves.tick(now)
        self.last_call.tick(now)
        self.dispatcher.end_what_hangs(now)
        self.starts.tick(now)
        self._set_pace(now)
        self.dispatcher.start()
        if self.owners.untold_death is not None and not self.owners and self._all_is_stored():
            self.checkpoints.scan()  # The last doorbell may not have been rung.
            if self._all_is_stored():
                self.dispatcher.tell_death()
        self.requests.questions.tick(now)
        self._look_at_exposure()
        self.annotating.tick(now)
        self.retaining.tick(now, may_begin=not self.last_call.is_near)
        self.card.tick(now, self.requests.facts, is_busy=bool(self.queue.uploading))

    def _look_at_exposure(self) -> None:
        if heard := self.exposure.hear_of_ends(self.last_call.sources):
            loss = self.exposure.loss(self.queue.waiting())
            who = f"The end of this machine is told ({', '.join(heard)})"
            self.owners.tell({"push": "notice", "why": f"{who}: {loss.words()}"})
        sending = any(not job.why for job in self.queue.uploading) or bool(self.queue.committing)
        self.exposure.see_uploads(are_on_their_way=sending)
        if not self.exposure.has_news:
            return
        try:
            recovery.write(self.spool.directory, self.exposure.recovery)
        except OSError as error:  # A note, which is tried again; until then more counts as lost than would be.
            self.checkpoints.remember(f"It cannot be written down what would be lost: {error}")
        else:
            self.exposure.is_written()

    def _all_is_stored(self) -> bool:
        """Whether nothing is on its way any more but shards that wait for other ranks."""
        return self.queue.pending == len(self.queue.gathering())

    def terminate(self) -> None:
        """From a signal handler: everything on this machine is told to end."""
        self.last_call.terminate()
        self._wake()

    # -- waking up -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """From any thread: end the loop's wait."""
        with contextlib.suppress(OSError):
            self._wake_write.send(b"\0", socket.MSG_DONTWAIT)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        for why in self.leases.notices():
            self.owners.say(why)
        self.checkpoints.fail_torn()

    def _set_pace(self, now: float) -> None:
        """While nobody trains (the task waits for a flush, or is gone, or soon will be) the uploader may use the
        machine. Else it leaves it to those who do, and sends at the pace that the interval between saves asks for.
        """
        if not self.queue.uploading:
            self.throughput.rest()
        hurry = self.requests.why_hurry()
        questions = self.requests.questions
        waits = questions.has("flush") or questions.has("claim")
        trains = len(self.owners) > 0 and not waits and not self.last_call.is_near
        self.uploader.set_priority(idle=trains)
        held = self.leases.are_waited_for and not self.last_call.is_near
        order = self.pace.look(now, self.queue.to_upload(), self.throughput.known, hurry, held=held)
        self.throughput.set_paced(order.bytes_per_s)
        self.uploader.set_rate(order.bytes_per_s)
        if notice := self.pace.news():
            self.owners.say(notice)

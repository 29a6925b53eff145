"""A task, its agent and its uploader in one thread, turn by turn: nothing happens until it is told to.

What is real: spool, journal, capture (hard links and leases of the kernel included), ``Checkpointer``, ``Launcher``
(but for its start of a process), ``AgentClient``, the frames and descriptors on the agent's socket, ``Agent`` with its
queue, guard, remover and data plane, the uploader's ``serve``, the local store.

What is not: processes and threads. A *turn* is what each of them would do next; where the real one waits, the others
have their turns. The clock stands still unless it is told to go on, or nothing else can happen. Reading and writing the
store's files takes no thread. A killed process is an object that is dropped, and whose descriptors are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import select
import selectors
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from async_ckpt.agent import agent as agent_module
from async_ckpt.agent import (
    guard,
    owners,
)
from async_ckpt.agent import leases as leases_module
from async_ckpt.agent.agent import Agent
from async_ckpt.agent.guard import Guard
from async_ckpt.agent.remover import Remover
from async_ckpt.capture import lease
from async_ckpt.config import Config
from async_ckpt.errors import AgentError, CheckpointError, ProtocolError, StoreError
from async_ckpt.ipc import protocol
from async_ckpt.ipc.client import AgentClient, AgentConnection
from async_ckpt.ipc.protocol import Message
from async_ckpt.spool import unchanged
from async_ckpt.spool.records import Admitted
from async_ckpt.spool.spool import Spool
from async_ckpt.stores import open_store
from async_ckpt.stores.base import Store, StoreSpec
from async_ckpt.system import forks, undisturbed
from async_ckpt.task import checkpointer as checkpointer_module
from async_ckpt.task import lookup
from async_ckpt.task.checkpointer import Checkpointer
from async_ckpt.task.launch import Launcher
from async_ckpt.upload import process
from harness.common.clock import StillClock
from harness.kills.death_at_call import Fuse
from harness.stores.failing_store import Gate, Sky, Weather

#: How far the clock goes on where nothing else can happen, and with each turn in which something did, in seconds.
_IDLE_S, _TURN_S = 0.25, 0.001

#: Files are copied away in so many bytes at a time: even small ones in several pieces.
_PIECE_BYTES = 2000

#: More turns than anything here can take.
_MOST_TURNS = 20_000

#: Numbers of agents: larger than that of any process.
_pids = itertools.count(1 << 23)


class Clock(StillClock):
    """What ``time`` is to the code under test."""

    def time_ns(self) -> int:
        """Wall time. It is ahead: so nothing was written in the moment in which it was captured."""
        return time.time_ns() + 10**9

    advance = StillClock.sleep


class World:
    """Everything there is.

    Parameters
    ----------
    base : Path
        Spools, store and whatever else is made lie in here.
    config : Config
        Everybody's.

    ``on_turn`` is called after each turn, ``on_commit`` with the agent and ids when it orders a commit.
    """

    def __init__(self, base: Path, config: Config) -> None:
        self.config, self.clock, self.sky, self.gate = config, Clock(), Sky(), Gate()
        self.root, self.store = str(base / "spools"), StoreSpec("local", str(base / "store"))
        self.client: InlineClient | None = None
        self.agent: AgentProcess | None = None
        self.uploader: InlineUploader | None = None
        self.dead_savers: set[int] = set()
        self.on_turn: Callable[[], None] = lambda: None
        self.on_commit: Callable[[Agent, Sequence[str]], None] = lambda agent, ids: None
        self.loop = _Loop(self.clock)
        self._patch = pytest.MonkeyPatch()
        self._install(self._patch)

    def _install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(checkpointer_module, "Launcher", functools.partial(InlineLauncher, self))
        patch.setattr(checkpointer_module, "AgentClient", functools.partial(InlineClient, self))
        patch.setattr(leases_module, "Guard", InlineGuard)
        patch.setattr(guard, "_PIECE_BYTES", _PIECE_BYTES)
        # Leases are looked at in each turn: no process is signalled, and an agent's number is that of none.
        patch.setattr(lease, "answer_for", lambda fd: None)
        patch.setattr(agent_module, "Remover", InlineRemover)
        patch.setattr(agent_module, "ChildProcess", lambda spool, role: InlineUploader(self, spool))
        patch.setattr(owners, "process_exists", lambda pid: self.client is not None)
        patch.setattr(undisturbed, "_begin", lambda call, work: None)  # So it is done in this thread.
        patch.setattr(anyio.to_thread, "run_sync", _call_at_once)
        patch.setattr(anyio.from_thread, "check_cancelled", lambda: None)
        patch.setattr(lookup, "open_store", functools.partial(self._open, None))
        patch.setattr(process, "open_store", functools.partial(self._open, self.gate))
        # Small files are recognized as unchanged as well.
        patch.setattr(unchanged, "MIN_BYTES", self.config.pack_below_bytes)

    def _open(self, gate: Gate | None, spec: StoreSpec, config: Config) -> Store:
        return Weather(open_store(spec, config), self.sky, gate)

    def close(self) -> None:
        self.kill_task()
        self.kill_agent()
        self._patch.undo()
        self.loop.close()

    # -- turns -----------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Everybody does what comes next; False if there was nothing to do for anybody."""
        moved = self.turn_of_agent()
        moved |= self.turn_of_client()
        return moved

    def turn_of_agent(self) -> bool:
        """The same for the agent and what it has: all that dies with it."""
        moved = self.turn_of_agent_alone()
        moved |= self.turn_of_guard()
        moved |= self.turn_of_remover()
        moved |= self.turn_of_uploader()
        self.clock.advance(_TURN_S)
        self.on_turn()
        return moved

    def turn_of_agent_alone(self) -> bool:
        """One round of its loop."""
        return self.agent is not None and self.agent.turn()

    def turn_of_guard(self) -> bool:
        if self.agent is None or self.agent.agent is None:
            return False
        with self.agent.as_itself():
            return cast(InlineGuard, self.agent.agent.leases._guard).turn()

    def turn_of_remover(self) -> bool:
        agent = self.agent and self.agent.agent
        return agent is not None and cast(InlineRemover, agent.remover).turn()

    def turn_of_uploader(self) -> bool:
        """New orders are begun; of what waits for the store, one call is made."""
        held = len(self.gate)
        if held:
            self.gate.let()
        self.loop.run_until_idle()
        return held > 0 or len(self.gate) > 0

    def turn_of_client(self) -> bool:
        return self.client is not None and self.client.turn()

    def wait(self, limit_s: float) -> None:
        """A turn, and if nobody moves, some time."""
        if not self.turn():
            self.clock.advance(min(max(limit_s, _TURN_S), _IDLE_S))

    def settle(self, limit_s: float, until: Callable[[], bool]) -> bool:
        """Go on until the condition is true (and nobody moves), or the time is over: False then."""
        end = self.clock.monotonic() + limit_s
        for _ in range(_MOST_TURNS):
            if self.turn():
                continue
            if until():
                return True
            if self.clock.monotonic() >= end:
                return False
            self.clock.advance(_IDLE_S)
        raise AssertionError("it never comes to rest")

    # -- life and death --------------------------------------------------------------------------------------------

    def die_as_agent(self, fuse: Fuse) -> None:
        """The agent and its uploader go on until the fuse blows or there is nothing left to do, and are killed."""
        with fuse.armed():
            while not fuse.blown and self.turn_of_agent():
                pass
        self.kill_agent()

    def kill_agent(self) -> None:
        self.kill_uploader()
        if self.agent is not None:
            self.agent.drop()
            self.agent = None

    def die_as_uploader(self, fuse: Fuse) -> None:
        """The same for the uploader alone."""
        with fuse.armed():
            while not fuse.blown and self.turn_of_uploader():
                pass
        self.kill_uploader()

    def kill_uploader(self) -> None:
        if self.uploader is not None:
            self.uploader.kill()

    def kill_task(self) -> None:
        """The kernel closes what the task had open; nobody says goodbye."""
        if self.client is not None:
            self.client.drop()
            self.client = None

    def die_as_saver(self, checkpointer: Checkpointer, save: Callable[[], None], after: int, *, links: bool) -> None:
        """A forked child of the task saves and is killed at one of its system calls, or right after its save. It never
        reaches the agent; with ``links`` it captures as if it could.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Of threads in the parent: there are none that matter.
            pid = os.fork()
        if not pid:
            status = 1
            try:
                checkpointer.tracker.client = _Alone(self.clock, guarded=links)  # type: ignore[assignment]
                with Fuse(after, die=lambda: os._exit(0)).armed(), contextlib.suppress(StoreError):
                    save()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.dead_savers.add(pid)
        assert os.waitpid(pid, 0)[1] == 0, "the saver failed"


async def _call_at_once(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    return function(*arguments)


class _Selector(selectors.DefaultSelector):
    """Tells when a loop would wait."""

    on_idle: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout != 0:
            self.on_idle()
        return found


class _Loop(asyncio.SelectorEventLoop):
    """The uploader's; it goes by the world's clock, and comes back where it would wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        selector = _Selector()
        selector.on_idle = self.stop
        super().__init__(selector)

    def time(self) -> float:
        return self._clock.monotonic()

    def run_until_idle(self) -> None:
        self.run_forever()


class AgentProcess:
    """What ``agent.__main__`` and ``Agent.run`` are: an agent in its process, which may not have begun yet."""

    def __init__(self, world: World, directory: str, lock: int, listening: socket.socket) -> None:
        self._world, self._directory = world, directory
        self._lock, self._listening = lock, listening
        self._pid = next(_pids)
        self.agent: Agent | None = None
        world.dead_savers.clear()

    def turn(self) -> bool:
        """One round of the loop; False if there was nothing to do."""
        with self.as_itself():
            return self._turn()

    @contextlib.contextmanager
    def as_itself(self) -> Iterator[None]:
        """What it leaves on the disk bears its number, and no two have the same."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: self._pid)
            yield

    def _turn(self) -> bool:
        if self.agent is None:
            return self._begin()
        events = self.agent._selector.select(0)
        for key, mask in events:
            key.data(mask)
        self.agent._tick()
        if self.agent._is_over() and self.agent._leave():
            self.agent._close()
            forks.close_lock(self._lock)
            self._world.agent = None
            return True
        return bool(events)

    def _begin(self) -> bool:
        world = self._world
        try:
            spool = Spool.open(self._directory)
            self.agent = Agent.__new__(Agent)  # So that what it has opened is known if it dies now.
            self.agent.__init__(  # type: ignore[misc]
                spool,
                self._listening,
                world.config,
                guarded=True,
                clock=world.clock,
            )
        except CheckpointError:  # It ends with a line in its log.
            world.kill_agent()
            return True
        agent, tell = self.agent, self.agent.uploader.tell

        def told(*messages: Message) -> None:
            for message in messages:
                if message.get("op") == "commit":
                    world.on_commit(agent, message["ids"])
            tell(*messages)

        agent.uploader.tell = told  # type: ignore[method-assign]
        return True

    def drop(self) -> None:
        """Close what the process had open."""
        forks.close_lock(self._lock)
        self._listening.close()
        parts = vars(self.agent) if self.agent is not None else {}
        if "_server" in parts:
            for connection in parts["_server"].connections:
                connection._decoder.close()
                connection.sock.close()
            parts["_server"].listening.close()
        if "house" in parts:
            parts["house"].stop()
        if "leases" in parts:
            for held in parts["leases"]._guard._held.values():
                os.close(held.fd)
        if "uploader" in parts and parts["uploader"]._running is not None:
            parts["uploader"]._running.sock.close()
        for name in ("journal", "_wake_read", "_wake_write", "_selector"):
            if name in parts:
                parts[name].close()


class InlineLauncher(Launcher):
    """Starts an agent that has its first turn later."""

    def __init__(self, world: World, *arguments: Any) -> None:
        super().__init__(*arguments, clock=world.clock)
        self._world = world

    def _spawn(self, lock: int, listening: socket.socket) -> int:
        self._world.agent = AgentProcess(self._world, self._spool.directory, lock, listening)
        return os.getpid()


class _Turns:
    """In place of the condition on which a question waits for its answer."""

    def __init__(self, world: World) -> None:
        self.wait = world.wait

    def notify_all(self) -> None:
        """Nobody waits in another thread."""


class InlineClient(AgentClient):
    """Without its keeper's thread: what that does is a turn."""

    def __init__(self, world: World, *arguments: Any, **keywords: Any) -> None:
        self._world = world
        self._decoder: tuple[AgentConnection, protocol.Decoder] | None = None
        super().__init__(*arguments, **keywords, clock=world.clock)
        world.client = self

    def _reset(self) -> None:
        super()._reset()
        self._changed = _Turns(self._world)  # type: ignore[assignment]

    def _keep(self, link: AgentConnection) -> None:
        """Not in the thread."""

    def holds(self, identity: str) -> bool:
        """Whether this process has leases of a checkpoint."""
        return identity in self._leases

    def turn(self) -> bool:
        """Read what has come; see whether the agent is still there. False if there was nothing."""
        link = self._connection
        if link is None:
            return False
        poll = select.poll()
        poll.register(link.sock, select.POLLIN)
        if not self._out and not poll.poll(0):
            return False
        if self._decoder is None or self._decoder[0] is not link:
            self._decoder = link, protocol.Decoder()
        decoder = self._decoder[1]
        try:
            alive = self._pump(link, decoder)
        except (OSError, ProtocolError):
            alive = False
        if not alive:
            decoder.close()
            self._lost(link)
        return True

    def drop(self) -> None:
        """Close what the process had open."""
        self._closed = True
        if self._connection is not None:
            self._connection.sock.close()
            self._connection = None
        for leases in self._leases.values():
            for item in leases.values():
                os.close(item.fd)
        self._leases.clear()


class _Alone:
    """The client of a saver that cannot reach the agent, but knows of it."""

    def __init__(self, clock: Clock, *, guarded: bool) -> None:
        self.clock, self._guarded = clock, guarded

    def is_guarded(self) -> bool:
        return self._guarded

    def lease_budget(self) -> int:
        return 1000

    def announce(self, item: Admitted, leases: Mapping[str, int]) -> None:
        """The doorbell does not ring."""

    def request(self, op: str, limit_s: float, **fields: Any) -> Message:
        raise AgentError("This saver cannot reach the agent")


class InlineGuard(Guard):
    """Without threads: what they do is a turn."""

    def _start(self) -> list[threading.Thread]:
        return []

    def turn(self) -> bool:
        """Make private what somebody waits for, and what is to be copied ahead; False if that is nothing."""
        before = len(self._held)
        self._see_who_waits()
        self._waited_for.put(None)
        self._copy_what_is_waited_for()
        self._ahead.put(None)
        self._copy_ahead()
        return len(self._held) < before


class InlineRemover(Remover):
    """Without a thread: what it does is a turn."""

    def _run(self) -> None:
        """Not in the thread."""

    def turn(self) -> bool:
        """Remove one snapshot; False if there is none to remove."""
        todo = None if self._todo.empty() else self._todo.get()
        if todo is not None:
            self._remove(*todo)
        return todo is not None


class InlineUploader:
    """An uploader as a task of the world's loop."""

    def __init__(self, world: World, spool: Spool) -> None:
        self.sock, self._theirs = socket.socketpair()
        self.pid = os.getpid()
        self._world = world
        self._task = world.loop.create_task(process.serve(self._theirs, spool, world.config))
        world.uploader = self

    def stop(self) -> None:
        """The agent closes its end."""
        self.sock.close()
        self._end()

    def kill(self) -> None:
        """It dies; the agent sees the end of the connection."""
        self._task.cancel()
        self._end()

    def _end(self) -> None:
        self._world.loop.run_until_idle()
        assert self._task.done(), "the uploader goes on"
        if not self._task.cancelled():
            self._task.exception()
        self._theirs.close()
        self._world.uploader = None
